"""Benchmarks: ``python -m bench`` (end to end) and ``python -m bench.images`` (reading and decoding)."""
