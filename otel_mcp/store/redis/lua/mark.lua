-- Note a pattern of a running session. ARGV: digest of the service, the pattern. Returns 1 for the first that notes it,
-- else 0, also if the session has ended or its document is gone.
local s = read_stats()
local known = s.m and ' ' .. s.m .. ' ' or ''
if not s.t or s.x or s.v ~= ARGV[1] or string.find(known, ' ' .. ARGV[2] .. ' ', 1, true) then return 0 end
local d = read_document(s)
if not d then return 0 end
s.m = s.m and s.m .. ' ' .. ARGV[2] or ARGV[2]
write(d, s, {})
return 1
