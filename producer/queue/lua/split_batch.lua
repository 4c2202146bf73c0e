-- Replace an open batch by parts of it, which redelivery sends as it sends batches that were returned.
--
-- KEYS: open batches, attempts, posters done, claim, returned batches
-- ARGV: job id, batch id, attempts counted of a part that has several posters,
--       then (part id, JSON, number of posters)*
-- Returns 1 if it was split, 0 if it was not open
local open, attempts, done, claim, returned = unpack(KEYS)
local job, batch, counted = unpack(ARGV, 1, 3)

if redis.call('HDEL', open, batch) == 0 then return 0 end
redis.call('HDEL', attempts, batch, batch .. '#', batch .. '!', batch .. '@', batch .. '~', batch .. '+')
redis.call('HDEL', done, batch)
redis.call('HDEL', returned, batch)
redis.call('DEL', claim)
for at = 4, #ARGV, 3 do
  local part, json, posters = unpack(ARGV, at, at + 2)
  redis.call('HSET', open, part, json)
  redis.call('HSET', attempts, part .. '#', 1, part .. '+', posters)
  redis.call('HSET', returned, part, job)
  if tonumber(posters) > 1 then redis.call('HSET', attempts, part, counted) end
end
return 1
