-- Return the batch with which a child process of the owner died. The attempt stays counted.
--
-- KEYS: open batches, claim, returned batches
-- ARGV: batch id, owner, job id
-- Returns 1 if the owner had it
local open, claim, returned = unpack(KEYS)
local batch, owner, job = unpack(ARGV)

local current = redis.call('GET', claim)
if not current or string.sub(current, 1, #owner + 1) ~= owner .. '#' then return 0 end
redis.call('DEL', claim)
if redis.call('HEXISTS', open, batch) == 1 then redis.call('HSET', returned, batch, job) end
return 1
