-- Change entries of the table KEYS[1] that are still what they were; returns the names of the others. ARGV: how many there
-- are at most, ms that the table is kept, then of each its name, its former text, its new one ('' = none).
local missed = {}
for at = 3, #ARGV, 3 do
  local name, new, known = ARGV[at], ARGV[at + 2], redis.call('HMGET', KEYS[1], ARGV[at])[1]
  if (known or '') ~= ARGV[at + 1] or (not known and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[1])) then
    missed[#missed + 1] = name
  elseif new == '' then
    redis.call('HDEL', KEYS[1], name)
  else
    redis.call('HSET', KEYS[1], name, new)
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return missed
