-- Record one step of sending: a batch before it is sent, and the posters that are settled without one.
--
-- KEYS: job, open batches, failures, attempts, sender, active jobs
-- ARGV: job id, step from 1, lifetime of the sender key in s, unchanged posters, number of failures,
--       then (poster id, JSON)* of the failures, then optionally batch id, JSON, number of posters
-- Returns 1 if recorded, 0 if this step was recorded before, -1 if the job is unknown, -2 if it was cancelled,
--         -3 if the step before this one is missing
local job, open, failures, attempts, sender, active = unpack(KEYS)
local id, step, sender_s, unchanged, failed = unpack(ARGV, 1, 5)

local state = redis.call('HGET', job, 'state')
if not state then return -1 end
if state == 'cancelled' then return -2 end
local last = tonumber(redis.call('HGET', job, 'step') or '0')
if tonumber(step) <= last then return 0 end
if tonumber(step) > last + 1 then return -3 end
redis.call('HSET', job, 'step', step, 'state', 'sending')
redis.call('SET', sender, 'alive', 'EX', sender_s)
redis.call('SADD', active, id)
for i = 1, 4 do redis.call('PERSIST', KEYS[i]) end
local at = 6
for _ = 1, tonumber(failed) do
  redis.call('HSET', failures, ARGV[at], ARGV[at + 1])
  at = at + 2
end
local posters = 0
if at < #ARGV then
  redis.call('HSET', open, ARGV[at], ARGV[at + 1])
  posters = tonumber(ARGV[at + 2])
  redis.call('HSET', attempts, ARGV[at] .. '+', posters)
end
redis.call('HINCRBY', job, 'unchanged', unchanged)
redis.call('HINCRBY', job, 'failed', failed)
redis.call('HINCRBY', job, 'submitted', tonumber(unchanged) + tonumber(failed) + posters)
return 1
