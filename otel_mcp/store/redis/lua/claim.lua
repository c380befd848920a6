-- Claim the end of a session whose time may be over. ARGV: by when, token of the claimer, until when the claim stands,
-- digest of the service, '1' for an end that the claimer has held until now alone. Returns {'nothing'} to report,
-- {'ours', report}, {'later', when its time is over}, or {'claimed', until when by another}.
-- A claim that its owner did not acknowledge falls to the next one: a process may die before it reports.
local by, token, lease, s = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), read_stats()
if s.v and s.v ~= ARGV[4] then return {'nothing'} end -- Another service reports it.
if s.x then
  if not s.w then return {'nothing'} end
  local owner, untill = string.match(s.w, '^(%S+) (%d+)$')
  local mine = owner == token or (ARGV[5] == '1' and owner == 'h:' .. token)
  if not mine and tonumber(untill) > by then return {'claimed', untill} end
  redis.call('HSET', stats, 'w', token .. ' ' .. int(lease))
  return {'ours', report(read_document(s))}
end
if not s.t then return {'nothing'} end
if s.t + s.i > by or ARGV[5] == '1' then return {'later', int(s.t + s.i)} end
return {'ours', expire(s, token, lease)}
