-- The end of a session has been reported. Returns the deadline of another one that has begun under the id since, or 0.
redis.call('HDEL', stats, 'w')
local s = read_stats()
return s.t and not s.x and int(s.t + s.i) or '0'
