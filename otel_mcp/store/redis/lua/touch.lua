-- Keep an agreed value (ARGV[1]) alive for ARGV[2] ms; put it back if it is gone.
-- Returns the value that stands: another one is left as it is, for its own session to keep alive.
local value = redis.call('GET', KEYS[1])
if value == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
elseif not value then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return value or ARGV[1]
