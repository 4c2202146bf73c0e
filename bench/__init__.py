"""Benchmarks: ``python -m bench`` (beside its peers), and what each of the other modules here says of itself."""
