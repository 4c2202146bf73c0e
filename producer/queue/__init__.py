"""Queue and ledger in Redis: messages, jobs, claims, redelivery, dead letters, locks, workers."""
