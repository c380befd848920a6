-- Note user and client of a session after its `initialize`, before anything else of it is written: the first message
-- may be another user's, or reach another replica. ARGV: user ('' = nobody), digest of the service, ms until the note
-- expires if nothing is written, name and version of the client ('' = not known).
local s = read_stats()
if s.k or s.x or (s.v and s.v ~= ARGV[2]) then return 0 end
redis.call('HSET', stats, 'k', '1', 'v', ARGV[2], 'u', ARGV[1])
if ARGV[1] == '' then redis.call('HDEL', stats, 'u') end
if ARGV[4] ~= '' then redis.call('HSET', stats, 'client_name', ARGV[4], 'client_version', ARGV[5]) end
if not s.t then redis.call('PEXPIRE', stats, ARGV[3]) end
return 1
