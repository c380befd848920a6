-- Note whose a session is that has shaken hands, before anything of it is written: what comes first may be another's.
-- ARGV: user ('' = nobody), digest of the service, ms until it is forgotten if nothing is written.
local raw = redis.call('HMGET', stats, 't', 'x', 'v', 'k')
if raw[4] or raw[2] or (raw[3] and raw[3] ~= ARGV[2]) then return 0 end
if ARGV[1] == '' then redis.call('HDEL', stats, 'u') else redis.call('HSET', stats, 'u', ARGV[1]) end
redis.call('HSET', stats, 'k', '1', 'v', ARGV[2])
if not raw[1] then redis.call('PEXPIRE', stats, ARGV[3]) end
return 1
