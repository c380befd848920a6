-- The id that continues another one: what replicas have agreed on, else ARGV[1] from now on, for ARGV[2] ms.
-- KEYS[2] the stats of the session that is continued; ARGV[3] the user who goes on ('' = nobody);
-- ARGV[4] 1 = keep it alive, where it stands.
local value = redis.call('GET', KEYS[1])
if value then
  if value == ARGV[1] and ARGV[4] == '1' then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
  return value
end
local bound = redis.pcall('HMGET', KEYS[2], 'u')[1]
-- Another user goes on alone, in nobody's place.
if not bound or bound == ARGV[3] then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return ARGV[1]
