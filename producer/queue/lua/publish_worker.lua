-- Replace a worker's entry in the registry.
--
-- KEYS: worker, workers
-- ARGV: owner, lifetime of the entry in s, then (field, value)*
local worker, workers = unpack(KEYS)
local owner, lasts_s = unpack(ARGV, 1, 2)

redis.call('DEL', worker)
for at = 3, #ARGV, 2 do redis.call('HSET', worker, ARGV[at], ARGV[at + 1]) end
redis.call('EXPIRE', worker, lasts_s)
redis.call('SADD', workers, owner)
