-- Claim a batch for one delivery. The same holder may claim again (its answer was lost); another holder of the same
-- owner (its new child process) takes the batch over. The holder is noted beside the attempts until it releases the
-- batch: a claim that expired, and that nobody took since, is still its own.
--
-- KEYS: job, open batches, attempts, claim
-- ARGV: batch id, holder (OWNER#NONCE), owner, lifetime of the claim in ms
-- Returns {verdict, attempts counted, attempts begun, the batch as it was recorded, how many posters were recorded}
local job, open, attempts, claim = unpack(KEYS)
local batch, holder, owner, claim_ms = unpack(ARGV)

local text = redis.call('HGET', open, batch)
if not text then return {'finished', 0, 0, '', false} end
local last, posters = unpack(redis.call('HMGET', attempts, batch .. '@', batch .. '+'))
local current = redis.call('GET', claim)
local is_new = (current or last) ~= holder
if current and is_new and string.sub(current, 1, #owner + 1) ~= owner .. '#' then return {'busy', 0, 0, '', false} end
if is_new and redis.call('HGET', job, 'state') == 'cancelled' then return {'cancelled', 0, 0, text, posters} end
redis.call('DEL', claim)
redis.call('SET', claim, holder, 'PX', claim_ms)
if is_new then
  redis.call('HSET', attempts, batch .. '@', holder)
  redis.call('HINCRBY', attempts, batch, 1)
  redis.call('HINCRBY', attempts, batch .. '#', 1)
end
return {'work', redis.call('HGET', attempts, batch), redis.call('HGET', attempts, batch .. '#'), text, posters}
