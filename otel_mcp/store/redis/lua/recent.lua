-- What is kept for a time in the sorted set KEYS[1], by when it came. ARGV: instant up to which it is forgotten, then, to
-- add another: how many are kept, ms that they are, when it came, and what. Returns the first 64 that are there.
local old = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, 1000)
if #old > 0 then redis.call('ZREM', KEYS[1], unpack(old)) end
if ARGV[2] then
  redis.call('ZADD', KEYS[1], ARGV[4], ARGV[5])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  local excess = redis.call('ZCOUNT', KEYS[1], '-inf', '+inf') - ARGV[2]
  if excess > 0 then
    redis.call('ZREM', KEYS[1], unpack(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '+inf', 'LIMIT', 0, excess)))
  end
end
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '+inf', 'LIMIT', 0, 64)
