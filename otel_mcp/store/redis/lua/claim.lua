-- Claim the end of a session whose time may be over. ARGV: now, token of the
-- claimer, until when the claim stands, digest of the service.
-- Returns {0} nothing to report, {1, deadline} alive, {2, report} ended and
-- ours to report, {3, until} another one reports it.
-- A claim that its owner did not settle falls to the next one: a process may
-- die between claiming and reporting.
local now, token, lease = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local raw = redis.call('HMGET', stats, 't', 'i', 'x', 'w', 'n', 'e', 'r', 'o', 'v')
local s = {t = raw[1], i = raw[2], x = raw[3], w = raw[4], n = raw[5], e = raw[6], r = raw[7], o = raw[8]}
if raw[9] and raw[9] ~= ARGV[4] then return {0} end -- Another service tells of it.
if s.x then
  if not s.w then return {0} end
  local owner, untill = string.match(s.w, '^(%S+) (%d+)$')
  if owner ~= token and tonumber(untill) > now then return {3, untill} end
  redis.call('HSET', stats, 'w', token .. ' ' .. int(lease))
  return {2, report()}
end
if not s.t then return {0} end
local deadline = instant(s.t) + tonumber(s.i)
if deadline > now then return {1, int(deadline)} end
return {2, expire(s, token, lease)}
