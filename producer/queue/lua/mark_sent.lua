-- Mark a job as sent: no more batches will come. A job that was cancelled stays cancelled.
--
-- KEYS: job, open batches, failures, attempts, sender, active jobs
-- ARGV: job id, now, lifetime of an ended job in s, steps that were recorded
-- Returns 1, -1 if the job is unknown, -3 if steps are missing
local job, open, failures, attempts, sender, active = unpack(KEYS)
local id, now, keep_s, steps = unpack(ARGV)

redis.call('DEL', sender)
local state = redis.call('HGET', job, 'state')
if not state then return -1 end
if state == 'sending' or state == 'abandoned' then redis.call('HSET', job, 'state', 'sent') end
if redis.call('HLEN', open) == 0 then
  redis.call('HSET', job, 'ended', now)
  redis.call('SREM', active, id)
  local keep = redis.call('HGET', job, 'keep_s') or keep_s
  for i = 1, 4 do redis.call('EXPIRE', KEYS[i], keep) end
end
if tonumber(redis.call('HGET', job, 'step') or '0') < tonumber(steps) and state ~= 'cancelled' then return -3 end
return 1
