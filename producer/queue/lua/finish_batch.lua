-- Count the outcome of a batch, once.
--
-- KEYS: job, open batches, attempts, posters done, failures, vectors, claim, active jobs, returned batches
-- ARGV: job id, batch id, now, lifetime of an ended job in s, lifetime of the vectors in s, '1' to do it only if
--       nobody holds the batch, name of nobody, embedded, reused, unchanged, failed, cancelled, number of failures,
--       then (poster id, JSON)* of the failures, then (poster id, vector)*
-- Returns 1 if counted, 0 if it was counted before, or is claimed
local job, open, attempts, done, failures, vectors, claim, active, returned = unpack(KEYS)
local id, batch, now, keep_s, reply_s, only_if_free, nobody = unpack(ARGV, 1, 7)
local names = {'embedded', 'reused', 'unchanged', 'failed', 'cancelled'}
local counts = {unpack(ARGV, 8, 12)}
local cancelled = counts[5]

local holder = redis.call('GET', claim)
if only_if_free == '1' and holder and holder ~= nobody then return 0 end
if redis.call('HDEL', open, batch) == 0 then return 0 end
redis.call('HDEL', attempts, batch, batch .. '#', batch .. '@')
redis.call('HDEL', done, batch)
redis.call('HDEL', returned, batch)
redis.call('DEL', claim)
for i, name in ipairs(names) do
  if counts[i] ~= '0' then redis.call('HINCRBY', job, name, counts[i]) end
end
if cancelled ~= '0' then redis.call('HINCRBY', job, 'submitted', -tonumber(cancelled)) end
local at = 14
for _ = 1, tonumber(ARGV[13]) do
  redis.call('HSET', failures, ARGV[at], ARGV[at + 1])
  at = at + 2
end
while at < #ARGV do
  redis.call('HSET', vectors, ARGV[at], ARGV[at + 1])
  redis.call('EXPIRE', vectors, reply_s)
  at = at + 2
end
redis.call('HSET', job, 'ended', now)
if redis.call('HLEN', open) == 0 and redis.call('HGET', job, 'state') ~= 'sending' then
  redis.call('SREM', active, id)
  local keep = redis.call('HGET', job, 'keep_s') or keep_s
  for i = 1, 5 do redis.call('EXPIRE', KEYS[i], keep) end
end
return 1
