-- Keep KEYS[1] for at least ARGV[1] ms, unless it has no expiry.
local left = redis.call('PTTL', KEYS[1])
return left > 0 and left < tonumber(ARGV[1]) and redis.call('PEXPIRE', KEYS[1], ARGV[1])
