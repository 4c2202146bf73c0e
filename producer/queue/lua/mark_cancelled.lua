-- Mark a job as cancelled: no worker begins any more of it.
--
-- KEYS: job, open batches
-- Returns 1, 0 if the job is at rest already, -1 if it is unknown
local job, open = unpack(KEYS)

local state = redis.call('HGET', job, 'state')
if not state then return -1 end
if state ~= 'sending' and redis.call('HLEN', open) == 0 then return 0 end
redis.call('HSET', job, 'state', 'cancelled')
return 1
