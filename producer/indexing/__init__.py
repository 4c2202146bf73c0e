"""Indexing: leave out what is up to date, send the rest within a window, follow the job."""
