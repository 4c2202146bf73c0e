-- Claim a batch for one delivery. The same holder may claim again (its answer was lost); another holder of the same
-- owner (its new child process) takes the batch over. The holder is noted beside the attempts until it releases the
-- batch: a claim that expired, and that nobody took since, is still its own.
--
-- An attempt is counted when it has ended badly, never when it begins: here, if the last holder did not release the
-- batch. Unless Redis was started anew since: then that holder may have stopped meanwhile, and could not release it.
--
-- While the bulk lane is paused, a batch of it rests instead: nobody holds it, and no attempt begins.
--
-- KEYS: job, open batches, attempts, claim, paused, resting batches
-- ARGV: batch id, holder (OWNER#NONCE), owner, lifetime of the claim in ms, job id, '1' if it came on the bulk lane
-- Returns {verdict, number of the attempt, attempts begun, the batch as it was recorded, its number of posters}
local job, open, attempts, claim, paused, resting = unpack(KEYS)
local batch, holder, owner, claim_ms, job_id, is_bulk = unpack(ARGV)

local text = redis.call('HGET', open, batch)
if not text then return {'finished', 0, 0, '', false} end
local last, run, posters = unpack(redis.call('HMGET', attempts, batch .. '@', batch .. '~', batch .. '+'))
local current = redis.call('GET', claim)
local is_new = (current or last) ~= holder
if current and is_new and string.sub(current, 1, #owner + 1) ~= owner .. '#' then return {'busy', 0, 0, '', false} end
if is_new and redis.call('HGET', job, 'state') == 'cancelled' then return {'cancelled', 0, 0, text, posters} end
if is_new and is_bulk == '1' and redis.call('EXISTS', paused) == 1 then
  redis.call('HDEL', resting, batch)
  redis.call('HSET', resting, batch, job_id)
  return {'paused', 0, 0, '', false}
end
redis.call('DEL', claim)
redis.call('SET', claim, holder, 'PX', claim_ms)
if is_new then
  local info = redis.pcall('INFO', 'server')  -- an error where a provider forbids it: then every such end counts
  local this_run = type(info) == 'string' and string.match(info, 'run_id:(%w+)') or ''
  if last and (run or '') == this_run then redis.call('HINCRBY', attempts, batch, 1) end
  redis.call('HSET', attempts, batch .. '@', holder, batch .. '~', this_run)
  redis.call('HINCRBY', attempts, batch .. '#', 1)
end
local number = (redis.call('HGET', attempts, batch) or 0) + 1
return {'work', number, redis.call('HGET', attempts, batch .. '#'), text, posters}
