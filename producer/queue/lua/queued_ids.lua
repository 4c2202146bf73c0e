-- Read the task ids of the messages on a lane, so that the messages themselves need not travel.
-- kombu writes the body (base64, without quotes) before the headers: `"id": "` occurs in the headers alone.
--
-- KEYS: lane
-- ARGV: first, last
-- Returns of each message its task id; the message itself where that cannot be found
local found = {}
for i, text in ipairs(redis.call('LRANGE', KEYS[1], ARGV[1], ARGV[2])) do
  local _, at = string.find(text, '"id": "', 1, true)
  local ends = at and string.find(text, '"', at + 1, true)
  found[i] = ends and string.sub(text, at + 1, ends - 1) or text
end
return found
