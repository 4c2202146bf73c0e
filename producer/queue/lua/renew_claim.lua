-- Renew a claim, and record how many posters are done. A claim that expired, and that nobody took or released since,
-- is still its last holder's: a clock that jumps must not cost a batch.
--
-- KEYS: open batches, attempts, posters done, claim
-- ARGV: batch id, holder, lifetime of the claim in ms, posters done
-- Returns 1, 0 if the batch is not the holder's any more
local open, attempts, done, claim = unpack(KEYS)
local batch, holder, claim_ms, posters_done = unpack(ARGV)

if redis.call('HEXISTS', open, batch) == 0 then return 0 end
if (redis.call('GET', claim) or redis.call('HGET', attempts, batch .. '@')) ~= holder then return 0 end
redis.call('DEL', claim)
redis.call('SET', claim, holder, 'PX', claim_ms)
redis.call('HSET', done, batch, posters_done)
return 1
