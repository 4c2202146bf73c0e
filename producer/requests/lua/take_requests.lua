-- Take the oldest requests, and note who holds them. They stay until they are answered. What has expired, was withdrawn
-- or is too large is dropped. An owner that holds none, and is noted to hold some, took them by a call whose answer was
-- lost: they go back first.
--
-- KEYS: list, in hand, owners
-- ARGV: owner, most, prefix of requests, most bytes of one, bytes after which no more are taken, lifetime of notes in s,
--       how many the owner holds
-- Returns {token, head, body, microseconds since it was put, or empty}*
local list, in_hand, owners = unpack(KEYS)
local owner, most, prefix, most_bytes, enough_bytes, lasts_s, held = unpack(ARGV)

if held == '0' then
  local lost = redis.call('HKEYS', in_hand)
  redis.call('DEL', in_hand)
  for _, token in ipairs(lost) do redis.call('RPUSH', list, token) end
end

local clock = redis.call('TIME')
local function waited_us(request)
  local seconds, microseconds = string.match(redis.call('HGET', request, 'at') or '', '^(%d+) (%d+)$')
  if not seconds then return '' end
  return math.max(0, (clock[1] - seconds) * 1000000 + clock[2] - microseconds)
end

local found, bytes = {}, 0
while #found < tonumber(most) and bytes < tonumber(enough_bytes) do
  local token = redis.call('RPOP', list)
  if not token then break end
  local request = prefix .. token
  local length = redis.call('HSTRLEN', request, 'body')
  local head = redis.call('HGET', request, 'head')
  if head and length <= tonumber(most_bytes) then
    redis.call('HSET', in_hand, token, 'taken')
    found[#found + 1] = {token, head, redis.call('HGET', request, 'body') or '', waited_us(request)}
    bytes = bytes + length
  else
    redis.call('DEL', request)
  end
end
if #found > 0 then
  redis.call('EXPIRE', in_hand, lasts_s)
  redis.call('SADD', owners, owner)
  redis.call('EXPIRE', owners, lasts_s)
end
return found
