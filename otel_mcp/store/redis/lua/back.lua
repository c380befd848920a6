-- The client of this session, which was cut, has begun another one. ARGV: when, digest of the service.
-- Returns false where it was not cut, or too long ago, or has come back already. Else {microseconds since the cut,
-- whether it is over, user, creation, limit, facts of AT_END}.
local s = read_stats()
local since = s.t and s.v == ARGV[2] and come_back(s, tonumber(ARGV[1]), tonumber(ARGV[1]))
if not since then return false end
redis.call('HSET', stats, 'z', s.z)
return {int(since), s.x and 1 or 0, s.u or false, int(s.a), int(s.i), unpack(redis.call('HMGET', stats, unpack(AT_END)))}
