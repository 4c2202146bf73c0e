-- Put a request, unless too many wait. Those whose caller is gone do not count. It is noted when, by Redis' clock.
--
-- KEYS: list, request
-- ARGV: token, head, body, lifetime in ms, most that may wait, prefix of requests
-- Returns how many wait now; if that is too many, and nothing was put, negative
local list, request = unpack(KEYS)
local token, head, body, keep_ms, most, prefix = unpack(ARGV)

local waiting = redis.call('LLEN', list)
if waiting >= tonumber(most) then
  for _, other in ipairs(redis.call('LRANGE', list, 0, -1)) do
    if redis.call('EXISTS', prefix .. other) == 0 then waiting = waiting - redis.call('LREM', list, 1, other) end
  end
  if waiting >= tonumber(most) then return -waiting end
end
redis.call('HSET', request, 'head', head, 'body', body, 'at', table.concat(redis.call('TIME'), ' '))
redis.call('PEXPIRE', request, keep_ms)
return redis.call('LPUSH', list, token)
