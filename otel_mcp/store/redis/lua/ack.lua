-- Acknowledge that an end has been reported. ARGV: token of the process that claimed it, outcome ('' = none).
-- Returns the deadline of another session that has begun under the id since, or 0.
local s = read_stats()
if s.x and string.match(s.w or '', '^%S+') == ARGV[1] then
  local d = read_document(s)
  redis.call('HDEL', stats, 'w')
  s.w, s.o = nil, ARGV[2] ~= '' and ARGV[2] or s.o
  if d then write(d, s, {}) end
  redis.call('PEXPIRE', stats, kept(s))
end
return s.t and not s.x and int(s.t + s.i) or '0'
