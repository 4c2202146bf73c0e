"""The worker: turns batches of posters into CLIP vectors. Started with ``celery -A worker worker``."""
