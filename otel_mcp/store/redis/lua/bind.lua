-- Note whose a session is that has shaken hands, before anything of it is written: what comes first may be another's.
-- ARGV: user ('' = nobody), digest of the service, ms until it is forgotten if nothing is written.
local s = read_stats()
if s.k or s.x or (s.v and s.v ~= ARGV[2]) then return 0 end
redis.call('HSET', stats, 'k', '1', 'v', ARGV[2], 'u', ARGV[1])
if ARGV[1] == '' then redis.call('HDEL', stats, 'u') end
if not s.t then redis.call('PEXPIRE', stats, ARGV[3]) end
return 1
