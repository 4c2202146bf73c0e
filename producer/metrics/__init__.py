"""Metrics for Prometheus: what there is, and the figures of the queue; a worker adds its own."""
