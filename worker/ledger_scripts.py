"""The ledger's Lua scripts: steps that must happen whole or not at all. None of them reads the clock."""

from typing import Final

# KEYS open tries claim; ARGV batch owner claim_ms → {verdict, attempts, deliveries}
CLAIM: Final = """
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return {'finished', 0, 0} end
local owner = redis.call('GET', KEYS[3])
if owner and owner ~= ARGV[2] then return {'busy', 0, 0} end
redis.call('SET', KEYS[3], ARGV[2], 'PX', ARGV[3])
return {'work', redis.call('HINCRBY', KEYS[2], ARGV[1], 1), redis.call('HINCRBY', KEYS[2], ARGV[1] .. '#', 1)}
"""

# KEYS job open tries doing failures vectors claim; ARGV batch now keep_s reply_s embedded reused
# unchanged failed cancelled, then n_failures (id json)*, then (id vector)* → 1 if counted, 0 if it was before
FINISH: Final = """
if redis.call('HDEL', KEYS[2], ARGV[1]) == 0 then return 0 end
redis.call('HDEL', KEYS[3], ARGV[1], ARGV[1] .. '#')
redis.call('HDEL', KEYS[4], ARGV[1])
redis.call('DEL', KEYS[7])
local names = {'embedded', 'reused', 'unchanged', 'failed', 'cancelled'}
for i, name in ipairs(names) do
  if ARGV[4 + i] ~= '0' then redis.call('HINCRBY', KEYS[1], name, ARGV[4 + i]) end
end
if ARGV[9] ~= '0' then redis.call('HINCRBY', KEYS[1], 'submitted', -tonumber(ARGV[9])) end
local at = 11
for _ = 1, tonumber(ARGV[10]) do
  redis.call('HSET', KEYS[5], ARGV[at], ARGV[at + 1])
  at = at + 2
end
while at < #ARGV do
  redis.call('HSET', KEYS[6], ARGV[at], ARGV[at + 1])
  redis.call('EXPIRE', KEYS[6], ARGV[4])
  at = at + 2
end
redis.call('HSET', KEYS[1], 'ended', ARGV[2])
if redis.call('HLEN', KEYS[2]) == 0 and redis.call('HGET', KEYS[1], 'state') ~= 'sending' then
  local keep = redis.call('HGET', KEYS[1], 'keep_s') or ARGV[3]
  for i = 1, 5 do redis.call('EXPIRE', KEYS[i], keep) end
end
return 1
"""

# KEYS open tries claim doing; ARGV batch, then (part json)* → 1 if it was cut, 0 if it was not open
CUT: Final = """
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('HDEL', KEYS[2], ARGV[1], ARGV[1] .. '#')
redis.call('DEL', KEYS[3])
redis.call('HDEL', KEYS[4], ARGV[1])
for at = 2, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1])
  redis.call('HSET', KEYS[2], ARGV[at] .. '#', 1)
end
return 1
"""

# KEYS open tries claim; ARGV batch owner after_ms uncount. The claim outlives its owner for the pause.
GIVE_BACK: Final = """
if redis.call('GET', KEYS[3]) == ARGV[2] then
  redis.call('SET', KEYS[3], 'nobody, on purpose', 'PX', ARGV[3])
  if ARGV[4] == '1' and redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then
    redis.call('HINCRBY', KEYS[2], ARGV[1], -1)
  end
end
"""

# KEYS open doing claim; ARGV batch owner claim_ms done
BEAT: Final = """
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 and redis.call('GET', KEYS[3]) == ARGV[2] then
  redis.call('PEXPIRE', KEYS[3], ARGV[3])
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[4])
  return 1
end
return 0
"""

# KEYS job open failures sender active; ARGV job step sender_s unchanged n_failures (id json)*, then
# optionally batch json n_posters → 1 if taken, 0 if this step was taken before, -1 unknown, -2 cancelled
STEP: Final = """
if redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
if redis.call('HGET', KEYS[1], 'state') == 'cancelled' then return -2 end
if tonumber(ARGV[2]) <= tonumber(redis.call('HGET', KEYS[1], 'step') or '0') then return 0 end
redis.call('HSET', KEYS[1], 'step', ARGV[2])
redis.call('SET', KEYS[4], 'alive', 'EX', ARGV[3])
redis.call('SADD', KEYS[5], ARGV[1])
local failed = tonumber(ARGV[5])
local at = 6
for _ = 1, failed do
  redis.call('HSET', KEYS[3], ARGV[at], ARGV[at + 1])
  at = at + 2
end
local posters = 0
if at < #ARGV then
  redis.call('HSET', KEYS[2], ARGV[at], ARGV[at + 1])
  posters = tonumber(ARGV[at + 2])
end
redis.call('HINCRBY', KEYS[1], 'unchanged', ARGV[4])
redis.call('HINCRBY', KEYS[1], 'failed', failed)
redis.call('HINCRBY', KEYS[1], 'submitted', tonumber(ARGV[4]) + failed + posters)
return 1
"""

# KEYS job open failures sender; ARGV now keep_s. A job that was cancelled stays cancelled.
SENT: Final = """
redis.call('DEL', KEYS[4])
if redis.call('EXISTS', KEYS[1]) == 0 then return end
if redis.call('HGET', KEYS[1], 'state') == 'sending' then redis.call('HSET', KEYS[1], 'state', 'sent') end
if redis.call('HLEN', KEYS[2]) == 0 then
  redis.call('HSET', KEYS[1], 'ended', ARGV[1])
  local keep = redis.call('HGET', KEYS[1], 'keep_s') or ARGV[2]
  for i = 1, 3 do redis.call('EXPIRE', KEYS[i], keep) end
end
"""
