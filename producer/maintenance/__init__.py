"""Maintenance of the store: prune vectors of deleted posters, manage spaces."""
