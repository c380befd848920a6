-- The value under KEYS[1], or ARGV[1] from now on, for ARGV[2] ms (0: for good).
-- SET with both NX and GET needs Redis 7.
local value = redis.call('GET', KEYS[1])
if value then return value end
if ARGV[2] == '0' then
  redis.call('SET', KEYS[1], ARGV[1])
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return ARGV[1]
