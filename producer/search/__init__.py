"""Search: nearest neighbors, identification, duplicates, and an index held in memory."""
