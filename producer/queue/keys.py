"""Every Redis key of the queue and the ledger, with its lifetime. The store's keys are in vectors/redis.py.

posters:jobs            zset    job id → the order in which jobs began   the newest MAX_JOBS
posters:active          set     jobs that may hold open batches          until the job is at rest
posters:job:J           hash    state, counts, step, expected, …         settings.keep_jobs_days after the end
posters:job:J:open      hash    batch id → EmbedBatch as JSON            until the batch is finished
posters:job:J:tries     hash    batch id → attempts that ended badly,    until the batch is finished
                                batch id + # → attempts begun,
                                batch id + ! → those that crashed,
                                batch id + @ → its last holder,          until that one releases it
                                batch id + ~ → the run of Redis then     the same
                                batch id + + → its number of posters     until the batch is finished
posters:job:J:doing     hash    batch id → posters done so far           until the batch is finished
posters:job:J:failures  hash    poster id → [path, word, reason]         settings.keep_jobs_days after the end
posters:sender:J        string  a producer still sends                   SENDER_S, renewed meanwhile
posters:claim:B         string  who works on batch B                     settings.claim_s, renewed meanwhile
posters:returned        hash    batch that was returned → its job        until its pause is over
posters:paused          string  since when the bulk lane is paused       until `resume`
posters:resting         hash    batch that a worker took while the       until `resume`
                                bulk lane was paused → its job
posters:quarantine      list    rejected messages, with a reason         the newest MAX_DEAD_LETTERS
posters:probe           string  `doctor` can write                       PROBE_S
posters:put-aside:B     string  batch B is a dead letter already         ONCE_S
posters:repairer        string  who looks for lost batches               locks.py
posters:card:C          string  who works on card C                      locks.py
posters:workers, posters:worker:OWNER                                    workers.py
posters:requests…, posters:text-requests…, posters:poster-requests…      requests/codec.py
posters:request:TOKEN, posters:answer:TOKEN
posters.interactive, posters.bulk, unacked…, _kombu…                     kombu's: messages, and who has taken them
"""

from __future__ import annotations

from typing import Final

JOBS: Final = "posters:jobs"
MAX_JOBS: Final = 10_000  # more than anybody reads; a job is found by its id without this list
ACTIVE: Final = "posters:active"
RETURNED: Final = "posters:returned"
PAUSED: Final = "posters:paused"
RESTING: Final = "posters:resting"
DEAD_LETTERS: Final = "posters:quarantine"
MAX_DEAD_LETTERS: Final = 1000  # enough to see what a wrong sender does, too few to fill Redis
ONCE_S: Final = 86400  # a batch of a newer version is sent again and again; a line a day is enough
NOBODY: Final = "nobody, on purpose"  # holds the claim of a batch that rests; others are OWNER#NONCE
REDELIVERY_LEASE: Final = "posters:repairer"
PROBE: Final = "posters:probe"
PROBE_S: Final = 1
SENDER_S: Final = 30  # a producer renews it with every batch; silence means that it died


def job_keys(job: str, *names: str) -> list[str]:
    """Keys of a job: ``""`` for its entry, other names for its hashes."""
    return [f"posters:job:{job}" + (f":{name}" if name else "") for name in names]


def sender_key(job: str) -> str:
    """Key that exists while a producer of the job is alive."""
    return f"posters:sender:{job}"


def claim_key(batch: str) -> str:
    """Key that holds who works on a batch."""
    return f"posters:claim:{batch}"


def rejected_once_key(batch: str) -> str:
    """Key that exists while a batch is a dead letter already, so that it is added once."""
    return f"posters:put-aside:{batch}"


def card_key(card: str) -> str:
    """Key that holds who works on a card."""
    return f"posters:card:{card}"
