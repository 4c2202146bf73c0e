"""The worker process: startup, batches, image requests, heartbeat, supervision and shutdown."""
