-- Renew a claim, and record how many posters are done. A claim that expired and that nobody took is still its
-- holder's: a clock that jumps must not cost a batch.
--
-- KEYS: open batches, posters done, claim
-- ARGV: batch id, holder, lifetime of the claim in ms, posters done
-- Returns 1, 0 if the batch is not the holder's any more
local open, done, claim = unpack(KEYS)
local batch, holder, claim_ms, posters_done = unpack(ARGV)

if redis.call('HEXISTS', open, batch) == 0 then return 0 end
local current = redis.call('GET', claim)
if current and current ~= holder then return 0 end
redis.call('DEL', claim)
redis.call('SET', claim, holder, 'PX', claim_ms)
redis.call('HSET', done, batch, posters_done)
return 1
