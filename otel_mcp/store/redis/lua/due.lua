-- What time it is, and the sessions whose deadlines in KEYS[1], or claims there, are over, with these. ARGV: seconds to
-- look ahead, how many at most of either, ms that the deadlines stay without a look at them, what claims lie below.
local time = redis.call('TIME')
redis.call('PEXPIRE', KEYS[1], ARGV[3])
local by = time[1] + time[2] / 1000000 + ARGV[1]
local function upto(low, high)
  return redis.call('ZRANGEBYSCORE', KEYS[1], low, string.format('%.6f', high), 'WITHSCORES', 'LIMIT', 0, ARGV[2])
end
return {string.format('%.0f', time[1] * 1000000 + time[2]), upto(string.format('%.0f', -ARGV[4] / 2), by),
        upto('-inf', by - ARGV[4])}
