-- Create a job in state "sending". Running it twice changes nothing.
--
-- KEYS: job, active jobs, sender, list of jobs
-- ARGV: job id, lifetime of the sender key in s, '1' to list the job, length of the list, then (field, value)*
local job, active, sender, list = unpack(KEYS)
local id, sender_s, is_listed, list_length = unpack(ARGV, 1, 4)

for at = 5, #ARGV, 2 do redis.call('HSET', job, ARGV[at], ARGV[at + 1]) end
redis.call('SADD', active, id)
redis.call('SET', sender, 'alive', 'EX', sender_s)
if is_listed == '1' then
  local newest = redis.call('ZREVRANGE', list, 0, 0, 'WITHSCORES')
  redis.call('ZADD', list, tonumber(newest[2] or '0') + 1, id)
  redis.call('ZREMRANGEBYRANK', list, 0, -tonumber(list_length) - 1)
end
