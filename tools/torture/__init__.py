"""Makers of everything that must not break Parley."""
