-- Note under KEYS[1] what a process has in flight, and forget processes that have not done so lately.
-- ARGV: its token, the text ('' = nothing), for how many ms that holds.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local all = redis.call('HGETALL', KEYS[1])
for at = 1, #all, 2 do
  if (tonumber(string.match(all[at + 1], '^%d+')) or 0) <= now - ARGV[3] then redis.call('HDEL', KEYS[1], all[at]) end
end
if ARGV[2] == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f %s', now, ARGV[2]))
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
