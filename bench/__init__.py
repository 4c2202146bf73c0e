"""Benchmarks: ``python -m bench`` compares with peers; the other modules each document their own command."""
