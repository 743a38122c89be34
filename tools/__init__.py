"""Standalone commands; nothing imports them."""
