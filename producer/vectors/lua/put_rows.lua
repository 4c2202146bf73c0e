-- Insert or replace the rows of a chunk; with '1' as the sixth argument, only those that are as the caller saw them.
--
-- KEYS: space, spaces, current space, ids of the space, contents of the space, then the key of each row
-- ARGV: space id, space as JSON, provenance as JSON or '', now, first version of a new space, '1' to compare,
--       then for each row: id, digest, size, mtime_ns, vector, and its digest, size and mtime_ns as the caller saw
--       them, '' where there was none
local space, spaces, current, ids, contents = unpack(KEYS, 1, 5)
local space_id, json, provenance, now, first_version, compare = unpack(ARGV, 1, 6)

redis.call('HSET', space, 'space', json)
if provenance ~= '' then redis.call('HSET', space, 'provenance', provenance) end
redis.call('HSETNX', space, 'created', now)
redis.call('HSETNX', space, 'version', first_version)
redis.call('ZADD', spaces, 'NX', now, space_id)
redis.call('SETNX', current, space_id)
local changed = false
for i = 6, #KEYS do
  local at = 7 + 8 * (i - 6)
  local id, digest, size, mtime_ns, vector, seen_digest, seen_size, seen_mtime_ns = unpack(ARGV, at, at + 7)
  local found = redis.call('HMGET', KEYS[i], 'digest', 'size', 'mtime_ns')
  local old = found[1] or ''
  if compare ~= '1' or
      (old == seen_digest and (found[2] or '') == seen_size and (found[3] or '') == seen_mtime_ns) then
    if old ~= '' and old ~= digest then redis.call('ZREM', contents, old .. ':' .. id) end
    redis.call('HSET', KEYS[i], 'digest', digest, 'size', size, 'mtime_ns', mtime_ns, 'vector', vector, 'stored', now)
    redis.call('ZADD', contents, 0, digest .. ':' .. id)
    redis.call('ZADD', ids, 0, id)
    changed = true
  end
end
if changed then
  redis.call('HINCRBY', space, 'version', 1)
  redis.call('HSET', space, 'changed', now)
end
return redis.status_reply('OK')
