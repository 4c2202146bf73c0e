-- Note how many posters a job will have, for its per cent and time left. A job that is gone stays gone.
--
-- KEYS: job
-- ARGV: number of posters
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSET', KEYS[1], 'expected', ARGV[1]) end
