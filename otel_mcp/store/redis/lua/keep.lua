-- Have KEYS[1] stay for ARGV[1] ms at least, unless it does for good.
local left = redis.call('PTTL', KEYS[1])
return left > 0 and left < tonumber(ARGV[1]) and redis.call('PEXPIRE', KEYS[1], ARGV[1])
