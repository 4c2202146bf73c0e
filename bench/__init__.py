"""Benchmarks: ``python -m bench`` (end to end), ``bench.images`` (decoding), ``bench.reading`` (search and exports)."""
