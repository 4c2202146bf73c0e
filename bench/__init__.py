"""Benchmarks: ``python -m bench`` (beside its peers), ``bench.memory``, ``bench.variants`` and ``bench.images``."""
