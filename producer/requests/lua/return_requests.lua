-- Put what a worker holds back to the end of the list from which it was taken; of a worker that died, answer what it was
-- decoding, and what too many workers held when they died.
--
-- KEYS: list, in hand, owners
-- ARGV: owner, prefix of requests, prefix of answers, lifetime of an answer in s,
--       deaths after which a request is answered (0: the worker did not die), the stage that is answered at once, answer
-- Returns how many there were
local list, in_hand, owners = unpack(KEYS)
local owner, requests, answers, keep_s, most, at_once, text = unpack(ARGV)
most = tonumber(most)

local held = redis.call('HGETALL', in_hand)
redis.call('DEL', in_hand)
redis.call('SREM', owners, owner)
for at = 1, #held, 2 do
  local token, stage = held[at], held[at + 1]
  local request = requests .. token
  if redis.call('EXISTS', request) == 1 then
    if most > 0 and (stage == at_once or redis.call('HINCRBY', request, 'deaths', 1) >= most) then
      redis.call('DEL', request)
      redis.call('RPUSH', answers .. token, text)
      redis.call('EXPIRE', answers .. token, keep_s)
    else
      redis.call('RPUSH', list, token)
    end
  end
end
return #held / 2
