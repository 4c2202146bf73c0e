"""The worker process: startup, batches, requests, heartbeat, supervision and shutdown."""
