-- What time it is, and the sessions whose deadlines in KEYS[1] are over, with these. ARGV: seconds to look ahead, how
-- many at most, ms that the deadlines stay without a look at them.
local time = redis.call('TIME')
redis.call('PEXPIRE', KEYS[1], ARGV[3])
local by = string.format('%.6f', time[1] + time[2] / 1000000 + ARGV[1])
return {string.format('%.0f', time[1] * 1000000 + time[2]),
        redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', by, 'WITHSCORES', 'LIMIT', 0, ARGV[2])}
