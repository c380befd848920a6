-- Return the value of KEYS[1], or set it to ARGV[1] for ARGV[2] ms (0: forever). ARGV[3] '1': prolong an equal value.
-- KEYS[2] the stats of a session, which only its own user ARGV[4] ('' = nobody) may continue by setting a value.
-- SET with both NX and GET needs Redis 7.
local value = redis.call('GET', KEYS[1])
if value then
  if value == ARGV[1] and ARGV[3] == '1' then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
  return value
end
local bound = KEYS[2] and redis.pcall('HMGET', KEYS[2], 'u')[1]
if bound and bound ~= ARGV[4] then return ARGV[1] end
if ARGV[2] == '0' then redis.call('SET', KEYS[1], ARGV[1]) else redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return ARGV[1]
