"""Exports: NumPy shards, Parquet, FAISS; written whole or not at all."""
