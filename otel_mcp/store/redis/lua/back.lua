-- The client of this cut session has begun another one. ARGV: when, digest of the service, digest of the other.
-- Returns false if it was not cut, or too long ago, or its client is back already with yet another one. Else
-- {microseconds since the cut, whether it is over, user, creation, limit, facts of AT_END}.
local s = read_stats()
local at, cut, whose = tonumber(ARGV[1]), string.match(s.z or '', '^(%d+) %S+ 0 %a+ %S+ (%x+)$')
if not s.t or s.v ~= ARGV[2] then return false end
local since = whose == ARGV[3] and at - cut -- The answer was lost.
if not since then
  since = come_back(s, at, at)
  if not since then return false end
  redis.call('HSET', stats, 'z', s.z .. ' ' .. ARGV[3])
end
return {int(since), s.x and 1 or 0, s.u or false, int(s.a), int(s.i), unpack(redis.call('HMGET', stats, unpack(AT_END)))}
