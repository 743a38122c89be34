"""Benchmarks: each prints Parley's figure beside a peer's, measured in the same run, and their ratio."""
