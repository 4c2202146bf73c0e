"""Extensions of kombu and Celery, each with the version it was written against."""
