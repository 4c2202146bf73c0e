-- Read a job at one moment. A MULTI would do as well, but a full Redis refuses even one that only reads.
--
-- KEYS: job, open batches, posters done, sender
-- Returns {fields and values of the job, number of open batches, posters done of each, 1 if a producer is alive}
local job, open, done, sender = unpack(KEYS)

return {
  redis.call('HGETALL', job), redis.call('HLEN', open), redis.call('HVALS', done), redis.call('EXISTS', sender)
}
