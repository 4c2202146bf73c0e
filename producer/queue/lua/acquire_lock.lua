-- Acquire or renew a lock.
--
-- KEYS: lock
-- ARGV: holder, lifetime in ms
-- Returns who holds it now
local lock = KEYS[1]
local holder, lasts_ms = unpack(ARGV)

local current = redis.call('GET', lock)
if current and current ~= holder then return current end
redis.call('DEL', lock)
redis.call('SET', lock, holder, 'PX', lasts_ms)
return holder
