-- The end of a session has been reported. Returns the deadline of another one
-- that has begun under the id since, or 0.
redis.call('HDEL', stats, 'w')
local raw = redis.call('HMGET', stats, 't', 'i', 'x')
if raw[3] or not raw[1] then return '0' end
return int(instant(raw[1]) + tonumber(raw[2]))
