"""What this worker changes in kombu and Celery; each module names the version it was read in."""
