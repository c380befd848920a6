-- Claim the end of a session whose time may be over. ARGV: by when, token of the claimer, until when the claim stands,
-- digest of the service. Returns {'nothing'} to report, {'ours', report}, or {'later', when to look again}.
-- A claim that its owner did not acknowledge falls to the next one: a process may die before it reports.
local by, token, lease, s = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), read_stats()
if s.v and s.v ~= ARGV[4] then return {'nothing'} end -- Another service reports it.
if s.x then
  if not s.w then return {'nothing'} end
  local owner, untill = string.match(s.w, '^(%S+) (%d+)$')
  if owner ~= token and tonumber(untill) > by then return {'later', untill} end
  redis.call('HSET', stats, 'w', token .. ' ' .. int(lease))
  return {'ours', report()}
end
if not s.t then return {'nothing'} end
if s.t + s.i > by then return {'later', int(s.t + s.i)} end
return {'ours', expire(s, token, lease)}
