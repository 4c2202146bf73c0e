-- Answer requests, each once: one that was withdrawn, or answered before, has no key any more.
--
-- KEYS: in hand, owners
-- ARGV: owner, prefix of requests, prefix of answers, lifetime of an answer in s, then (token, answer)*
local in_hand, owners = unpack(KEYS)
local owner, requests, answers, keep_s = unpack(ARGV, 1, 4)

for at = 5, #ARGV, 2 do
  local token = ARGV[at]
  redis.call('HDEL', in_hand, token)
  if redis.call('DEL', requests .. token) == 1 then
    redis.call('RPUSH', answers .. token, ARGV[at + 1])
    redis.call('EXPIRE', answers .. token, keep_s)
  end
end
if redis.call('EXISTS', in_hand) == 0 then redis.call('SREM', owners, owner) end
