-- Return the batch with which a child process of the owner died. The attempt is counted. A claim that expired, and that
-- nobody took since, is still its last holder's.
--
-- KEYS: open batches, attempts, claim, returned batches
-- ARGV: batch id, owner, job id, '1' if the child crashed, '0' if it may have been killed from outside
-- Returns 1 if the owner had it
local open, attempts, claim, returned = unpack(KEYS)
local batch, owner, job, crashed = unpack(ARGV)

local holder = redis.call('GET', claim) or redis.call('HGET', attempts, batch .. '@')
if not holder or string.sub(holder, 1, #owner + 1) ~= owner .. '#' then return 0 end
redis.call('DEL', claim)
redis.call('HDEL', attempts, batch .. '@', batch .. '~')
if redis.call('HEXISTS', open, batch) == 0 then return 1 end
redis.call('HINCRBY', attempts, batch, 1)
if crashed == '1' then redis.call('HINCRBY', attempts, batch .. '!', 1) end
redis.call('HSET', returned, batch, job)
return 1
