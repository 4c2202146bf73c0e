-- Put a job that has open batches, or still sends, back among the active jobs if it is missing there.
--
-- KEYS: job, open batches, active jobs
-- ARGV: job id
-- Returns 1 if it was missing
local job, open, active = unpack(KEYS)

if redis.call('HLEN', open) == 0 and redis.call('HGET', job, 'state') ~= 'sending' then return 0 end
local was_there = redis.call('SREM', active, ARGV[1])
redis.call('SADD', active, ARGV[1])
return 1 - was_there
