-- Claim the end of a session that may have expired. ARGV: by when, token of the claimer, when the claim expires, digest
-- of the service, '1' to claim only an end that the claimer holds. Returns {'nothing'} to report, {'ours', report},
-- {'later', its deadline}, or {'claimed', until when by another}.
-- A claim that is not acknowledged goes to the next claimer: a process may die before it reports.
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
