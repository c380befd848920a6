-- Return the time, and the sessions with passed deadlines or claims in KEYS[1], with scores. ARGV: seconds to look
-- ahead, maximum number of each, ms until unread deadlines expire, offset of claims below deadlines.
local time = redis.call('TIME')
redis.call('PEXPIRE', KEYS[1], ARGV[3])
local by = time[1] + time[2] / 1000000 + ARGV[1]
local function upto(low, high)
  return redis.call('ZRANGEBYSCORE', KEYS[1], low, string.format('%.6f', high), 'WITHSCORES', 'LIMIT', 0, ARGV[2])
end
return {string.format('%.0f', time[1] * 1000000 + time[2]), upto(string.format('%.0f', -ARGV[4] / 2), by),
        upto('-inf', by - ARGV[4])}
