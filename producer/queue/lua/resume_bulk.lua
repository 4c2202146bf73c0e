-- End the pause of the bulk lane: the batches that rest are returned, so that redelivery sends them.
--
-- KEYS: paused, resting batches, returned batches
-- Returns the number of batches
local paused, resting, returned = unpack(KEYS)

redis.call('DEL', paused)
local found = redis.call('HGETALL', resting)
redis.call('DEL', resting)
for at = 1, #found, 2 do redis.call('HSET', returned, found[at], found[at + 1]) end
return #found / 2
