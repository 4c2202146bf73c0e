"""The ledger's Lua scripts: steps that must happen whole or not at all. None of them reads the clock.

A script whose first write takes no memory is let through by a Redis that is full (maxmemory); one whose
first write needs memory is refused before it has written anything. So what a worker does, which frees
memory in the end, begins with a deletion, and what a producer does begins with the writing.
"""

from typing import Final

# What CLAIM, BEAT and GIVE_BACK call a holder is OWNER#NONCE: the nonce tells one delivery from the next.
PAUSED: Final = "nobody, on purpose"

# ─── a job, as its producer writes it ───

# KEYS job active sender jobs; ARGV job sender_s listed most, then (field value)*. Asked twice, it changes nothing.
CREATE: Final = """
for at = 5, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1]) end
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('SET', KEYS[3], 'alive', 'EX', ARGV[2])
if ARGV[3] == '1' then
  local newest = redis.call('ZREVRANGE', KEYS[4], 0, 0, 'WITHSCORES')
  redis.call('ZADD', KEYS[4], tonumber(newest[2] or '0') + 1, ARGV[1])
  redis.call('ZREMRANGEBYRANK', KEYS[4], 0, -tonumber(ARGV[4]) - 1)
end
"""
# KEYS job open failures sender active; ARGV job step sender_s unchanged n_failures (id json)*, then
# optionally batch json n_posters → 1 if taken, 0 if this step was taken before, -1 unknown, -2 cancelled,
# -3 if the step before it is not here
STEP: Final = """
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return -1 end
if state == 'cancelled' then return -2 end
local last = tonumber(redis.call('HGET', KEYS[1], 'step') or '0')
if tonumber(ARGV[2]) <= last then return 0 end
if tonumber(ARGV[2]) > last + 1 then return -3 end
redis.call('HSET', KEYS[1], 'step', ARGV[2], 'state', 'sending')
redis.call('SET', KEYS[4], 'alive', 'EX', ARGV[3])
redis.call('SADD', KEYS[5], ARGV[1])
for i = 1, 3 do redis.call('PERSIST', KEYS[i]) end
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
# KEYS job open failures sender active; ARGV job now keep_s steps → 1, -1 if the job is unknown, -3 if steps
# are missing. A job that was cancelled stays cancelled.
SENT: Final = """
redis.call('DEL', KEYS[4])
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return -1 end
if state == 'sending' or state == 'abandoned' then redis.call('HSET', KEYS[1], 'state', 'sent') end
if redis.call('HLEN', KEYS[2]) == 0 then
  redis.call('HSET', KEYS[1], 'ended', ARGV[2])
  redis.call('SREM', KEYS[5], ARGV[1])
  local keep = redis.call('HGET', KEYS[1], 'keep_s') or ARGV[3]
  for i = 1, 3 do redis.call('EXPIRE', KEYS[i], keep) end
end
if tonumber(redis.call('HGET', KEYS[1], 'step') or '0') < tonumber(ARGV[4]) and state ~= 'cancelled' then return -3 end
return 1
"""
# KEYS job open → 1, 0 if the job is at rest already, -1 if it is unknown
CANCEL: Final = """
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return -1 end
if state ~= 'sending' and redis.call('HLEN', KEYS[2]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'state', 'cancelled')
return 1
"""
# KEYS job open failures sender active; ARGV job now keep_s → 1 if the job was at rest, and was struck off the
# active ones. One whose producer died while it sent is at rest when what it had sent is finished.
RETIRE: Final = """
if redis.call('HLEN', KEYS[2]) > 0 or redis.call('EXISTS', KEYS[4]) == 1 then return 0 end
redis.call('SREM', KEYS[5], ARGV[1])
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return 1 end
if state == 'sending' then redis.call('HSET', KEYS[1], 'state', 'abandoned', 'ended', ARGV[2]) end
local keep = redis.call('HGET', KEYS[1], 'keep_s') or ARGV[3]
for i = 1, 3 do redis.call('EXPIRE', KEYS[i], keep) end
return 1
"""
# KEYS job open doing sender → {entry, open batches, posters done of each, whether a producer lives}. One moment of
# a job; a MULTI would do as well, but a Redis that is full refuses even one that only reads.
PROGRESS: Final = """
return {
  redis.call('HGETALL', KEYS[1]), redis.call('HLEN', KEYS[2]), redis.call('HVALS', KEYS[3]),
  redis.call('EXISTS', KEYS[4])
}
"""

# ─── a batch, as a worker holds it ───

# KEYS job open tries claim; ARGV batch holder owner claim_ms → {verdict, attempts, deliveries}. The same
# holder may ask again (it heard no answer); another holder of the same owner (its new child) takes over.
CLAIM: Final = """
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 0 then return {'finished', 0, 0} end
local held = redis.call('GET', KEYS[4])
if held == ARGV[2] then
  return {'work', redis.call('HGET', KEYS[3], ARGV[1]), redis.call('HGET', KEYS[3], ARGV[1] .. '#')}
end
if held and string.sub(held, 1, #ARGV[3] + 1) ~= ARGV[3] .. '#' then return {'busy', 0, 0} end
if redis.call('HGET', KEYS[1], 'state') == 'cancelled' then return {'cancelled', 0, 0} end
redis.call('DEL', KEYS[4])
redis.call('SET', KEYS[4], ARGV[2], 'PX', ARGV[4])
return {'work', redis.call('HINCRBY', KEYS[3], ARGV[1], 1), redis.call('HINCRBY', KEYS[3], ARGV[1] .. '#', 1)}
"""
# KEYS open doing claim; ARGV batch holder claim_ms done → 1, 0 if the batch is not the holder's any more. A
# claim that expired and that nobody took is the holder's still: a clock that jumps must not cost a batch.
RENEW: Final = """
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
local held = redis.call('GET', KEYS[3])
if held and held ~= ARGV[2] then return 0 end
redis.call('DEL', KEYS[3])
redis.call('SET', KEYS[3], ARGV[2], 'PX', ARGV[3])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[4])
return 1
"""
# KEYS open tries claim returned; ARGV batch holder job after_ms uncount → 1, 0 if the batch is not the holder's.
# The claim outlives its holder for the pause; with after_ms 0 the batch is free at once.
RELEASE: Final = f"""
if redis.call('GET', KEYS[3]) ~= ARGV[2] then return 0 end
redis.call('DEL', KEYS[3])
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
if ARGV[5] == '1' then redis.call('HINCRBY', KEYS[2], ARGV[1], -1) end
if ARGV[4] ~= '0' then redis.call('SET', KEYS[3], '{PAUSED}', 'PX', ARGV[4]) end
redis.call('HSET', KEYS[4], ARGV[1], ARGV[3])
return 1
"""
# KEYS open claim returned; ARGV batch owner job → 1 if the owner had it. For an owner whose child died with it: the
# attempt stays counted, and it is sent again at once.
RELEASE_DEAD: Final = """
local held = redis.call('GET', KEYS[2])
if not held or string.sub(held, 1, #ARGV[2] + 1) ~= ARGV[2] .. '#' then return 0 end
redis.call('DEL', KEYS[2])
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then redis.call('HSET', KEYS[3], ARGV[1], ARGV[3]) end
return 1
"""
# KEYS job open tries doing failures vectors claim active returned; ARGV job batch now keep_s reply_s
# unclaimed_only embedded reused unchanged failed cancelled, then n_failures (id json)*, then (id vector)*
# → 1 if counted, 0 if it was before, or is claimed
FINISH: Final = f"""
local held = redis.call('GET', KEYS[7])
if ARGV[6] == '1' and held and held ~= '{PAUSED}' then return 0 end
if redis.call('HDEL', KEYS[2], ARGV[2]) == 0 then return 0 end
redis.call('HDEL', KEYS[3], ARGV[2], ARGV[2] .. '#')
redis.call('HDEL', KEYS[4], ARGV[2])
redis.call('HDEL', KEYS[9], ARGV[2])
redis.call('DEL', KEYS[7])
local names = {{'embedded', 'reused', 'unchanged', 'failed', 'cancelled'}}
for i, name in ipairs(names) do
  if ARGV[6 + i] ~= '0' then redis.call('HINCRBY', KEYS[1], name, ARGV[6 + i]) end
end
if ARGV[11] ~= '0' then redis.call('HINCRBY', KEYS[1], 'submitted', -tonumber(ARGV[11])) end
local at = 13
for _ = 1, tonumber(ARGV[12]) do
  redis.call('HSET', KEYS[5], ARGV[at], ARGV[at + 1])
  at = at + 2
end
while at < #ARGV do
  redis.call('HSET', KEYS[6], ARGV[at], ARGV[at + 1])
  redis.call('EXPIRE', KEYS[6], ARGV[5])
  at = at + 2
end
redis.call('HSET', KEYS[1], 'ended', ARGV[3])
if redis.call('HLEN', KEYS[2]) == 0 and redis.call('HGET', KEYS[1], 'state') ~= 'sending' then
  redis.call('SREM', KEYS[8], ARGV[1])
  local keep = redis.call('HGET', KEYS[1], 'keep_s') or ARGV[4]
  for i = 1, 5 do redis.call('EXPIRE', KEYS[i], keep) end
end
return 1
"""
# KEYS open tries doing claim; ARGV batch counted, then (part json n_posters)* → 1 if it was cut, 0 if it was
# not open. A part of several posters begins with so many attempts counted.
SPLIT: Final = """
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('HDEL', KEYS[2], ARGV[1], ARGV[1] .. '#')
redis.call('HDEL', KEYS[3], ARGV[1])
redis.call('DEL', KEYS[4])
for at = 3, #ARGV, 3 do
  redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1])
  redis.call('HSET', KEYS[2], ARGV[at] .. '#', 1)
  if tonumber(ARGV[at + 2]) > 1 then redis.call('HSET', KEYS[2], ARGV[at], ARGV[2]) end
end
return 1
"""

# ─── a worker's announcement ───

# KEYS worker workers; ARGV owner lasts_s, then (field value)*
PUBLISH: Final = """
redis.call('DEL', KEYS[1])
for at = 3, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1]) end
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('SADD', KEYS[2], ARGV[1])
"""

# ─── for repair ───

# KEYS lane; ARGV first last → of each message its task id; the message itself where that is not to be seen.
# kombu writes the body (base64, without quotes) before the headers; `"id": "` is in the headers alone.
IDS: Final = """
local found = {}
for i, text in ipairs(redis.call('LRANGE', KEYS[1], ARGV[1], ARGV[2])) do
  local _, at = string.find(text, '"id": "', 1, true)
  local ends = at and string.find(text, '"', at + 1, true)
  found[i] = ends and string.sub(text, at + 1, ends - 1) or text
end
return found
"""

# ─── leases ───

# KEYS lease; ARGV holder ms → the holder: the one that asks, unless another has it
ACQUIRE: Final = """
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return held end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
"""
# KEYS lease; ARGV holder
RELEASE_LEASE: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""
