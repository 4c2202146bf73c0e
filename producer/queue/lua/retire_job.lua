-- Take a job at rest off the active jobs. One whose producer died while it sent is at rest when what it had sent is
-- finished. What Redis has kept of a job whose entry it has lost expires as well.
--
-- KEYS: job, open batches, failures, attempts, sender, active jobs, posters done
-- ARGV: job id, now, lifetime of an ended job in s
-- Returns 1 if the job was at rest
local job, open, failures, attempts, sender, active, done = unpack(KEYS)
local id, now, keep_s = unpack(ARGV)

if redis.call('HLEN', open) > 0 or redis.call('EXISTS', sender) == 1 then return 0 end
redis.call('SREM', active, id)
redis.call('DEL', attempts, done)
if redis.call('HGET', job, 'state') == 'sending' then redis.call('HSET', job, 'state', 'abandoned', 'ended', now) end
local keep = redis.call('HGET', job, 'keep_s') or keep_s
for i = 1, 3 do redis.call('EXPIRE', KEYS[i], keep) end
return 1
