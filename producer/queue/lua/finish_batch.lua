-- Count the outcome of a batch, once. The posters that were recorded with it are what is counted: an outcome that does
-- not add up to them is refused.
--
-- KEYS: job, open batches, attempts, posters done, failures, claim, active jobs, returned batches
-- ARGV: job id, batch id, now, lifetime of an ended job in s,
--       kind: 'done'; 'withdrawn': all posters are cancelled, only if nobody holds the batch; 'unreadable': all failed,
--       name of nobody, embedded, reused, unchanged, failed, cancelled,
--       then (poster id, JSON)* of the failures
-- Returns the number of posters, 0 if it was counted before, or is claimed, -1 if its outcome does not add up
local job, open, attempts, done, failures, claim, active, returned = unpack(KEYS)
local id, batch, now, keep_s, kind, nobody = unpack(ARGV, 1, 6)
local names = {'embedded', 'reused', 'unchanged', 'failed', 'cancelled'}

local holder = redis.call('GET', claim)
if kind == 'withdrawn' and holder and holder ~= nobody then return 0 end
if redis.call('HEXISTS', open, batch) == 0 then return 0 end
local posters = tonumber(redis.call('HGET', attempts, batch .. '+'))  -- none: a producer of version 0.1 recorded it
local counts, sum = {}, 0
for i in ipairs(names) do
  counts[i] = tonumber(ARGV[6 + i])
  if posters and (kind == 'withdrawn' and i == 5 or kind == 'unreadable' and i == 4) then counts[i] = posters end
  sum = sum + counts[i]
end
if posters and sum ~= posters then return -1 end
redis.call('HDEL', open, batch)
redis.call('HDEL', attempts, batch, batch .. '#', batch .. '!', batch .. '@', batch .. '~', batch .. '+')
redis.call('HDEL', done, batch)
redis.call('HDEL', returned, batch)
redis.call('DEL', claim)
for i, name in ipairs(names) do
  if counts[i] ~= 0 then redis.call('HINCRBY', job, name, counts[i]) end
end
if counts[5] ~= 0 then redis.call('HINCRBY', job, 'submitted', -counts[5]) end
for at = 12, #ARGV, 2 do redis.call('HSET', failures, ARGV[at], ARGV[at + 1]) end
redis.call('HSET', job, 'ended', now)
if redis.call('HLEN', open) == 0 and redis.call('HGET', job, 'state') ~= 'sending' then
  redis.call('SREM', active, id)
  local keep = redis.call('HGET', job, 'keep_s') or keep_s
  for i = 1, 5 do redis.call('EXPIRE', KEYS[i], keep) end
end
return sum
