-- Replace an open batch by parts of it.
--
-- KEYS: open batches, attempts, posters done, claim
-- ARGV: batch id, attempts counted of a part that has several posters, then (part id, JSON, number of posters)*
-- Returns 1 if it was split, 0 if it was not open
local open, attempts, done, claim = unpack(KEYS)
local batch, counted = unpack(ARGV, 1, 2)

if redis.call('HDEL', open, batch) == 0 then return 0 end
redis.call('HDEL', attempts, batch, batch .. '#')
redis.call('HDEL', done, batch)
redis.call('DEL', claim)
for at = 3, #ARGV, 3 do
  local part, json, posters = unpack(ARGV, at, at + 2)
  redis.call('HSET', open, part, json)
  redis.call('HSET', attempts, part .. '#', 1)
  if tonumber(posters) > 1 then redis.call('HSET', attempts, part, counted) end
end
return 1
