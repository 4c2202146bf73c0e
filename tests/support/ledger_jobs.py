"""Jobs and batches for tests of the ledger and of claims, without a producer."""

import json

from producer.queue.messages import EmbedBatch, Poster


def batch(number=1, count=4, job="job"):
    return EmbedBatch(job, f"{job}.{number}", tuple(Poster(f"{number}-{n}", f"{n}.jpg") for n in range(count)))


def begin(ledger, *batches, job="job"):
    """A job whose producer has written all of it down."""
    ledger.create(job)
    for number, one in enumerate(batches, 1):
        ledger.record_step(job, number, batch=one)
    ledger.mark_sent(job, len(batches))


def recorded(ledger, job, batch_id):
    """An open batch as it was recorded."""
    return EmbedBatch.decode(json.loads(ledger.redis.hget(f"posters:job:{job}:open", batch_id)))


def holds(progress):
    """The second promise, for a job at rest."""
    return progress.submitted == progress.embedded + progress.reused + progress.unchanged + progress.failed
