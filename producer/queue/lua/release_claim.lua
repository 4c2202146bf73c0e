-- Return a batch, to be sent again after a pause, for which its claim remains under the name of nobody. A claim that
-- expired, and that nobody took since, is still its last holder's. An attempt that is counted was a crash: the batch
-- itself was what failed.
--
-- KEYS: open batches, attempts, claim, returned batches
-- ARGV: batch id, holder, job id, pause in ms ('0': it is free at once), '1' to count the attempt, name of nobody
-- Returns 1, 0 if the batch is not the holder's
local open, attempts, claim, returned = unpack(KEYS)
local batch, holder, job, pause_ms, is_counted, nobody = unpack(ARGV)

if (redis.call('GET', claim) or redis.call('HGET', attempts, batch .. '@')) ~= holder then return 0 end
redis.call('DEL', claim)
redis.call('HDEL', attempts, batch .. '@', batch .. '~')
if redis.call('HEXISTS', open, batch) == 0 then return 0 end
if is_counted == '1' then
  redis.call('HINCRBY', attempts, batch, 1)
  redis.call('HINCRBY', attempts, batch .. '!', 1)
end
if pause_ms ~= '0' then redis.call('SET', claim, nobody, 'PX', pause_ms) end
redis.call('HSET', returned, batch, job)
return 1
