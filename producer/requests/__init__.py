"""Requests: an image, a text or a poster whose vector somebody waits for."""
