-- Remove a session at once; what is still under way of it must not bring it back,
-- nor may another user take its id.
-- ARGV: now, now as ISO text, SHA-1 of an unrecorded document that may go, whose
-- session (facts), digest of the service, '1' where its end is left to who sweeps
-- next to report.
-- Returns {status, existed}: 1 done, 5 the document is not ours.
local raw = redis.call('HMGET', stats, 't', 'o', 'x', 'v', 'u', 'k')
local state = condition(offsets(raw[2]))
if raw[4] and raw[4] ~= ARGV[5] and not raw[3] then return {5, 0} end
if raw[1] and of_another(raw[2], ARGV[4]) then return {5, 0} end
if state == 'foreign' then
  if ARGV[3] == '' or redis.sha1hex(redis.call('GET', doc)) ~= ARGV[3] then return {5, 0} end
  state = 'ours'
end
if not raw[1] and state == 'missing' then return {1, 0} end
if ARGV[6] == '1' and raw[1] then
  redis.call('DEL', doc)
  if not raw[3] then redis.call('HSET', stats, 'x', ARGV[2] .. ' deleted ' .. ARGV[1], 'w', '- 0') end
  redis.call('PEXPIRE', stats, GRACE + 60000)
  return {1, state == 'ours' and 1 or 0}
end
redis.call('DEL', doc, stats)
redis.call('HSET', stats, 'x', ARGV[2] .. ' deleted ' .. ARGV[1])
if raw[5] then redis.call('HSET', stats, 'u', raw[5]) end
if raw[6] then redis.call('HSET', stats, 'k', raw[6]) end
redis.call('PEXPIRE', stats, GRACE)
return {1, state == 'ours' and 1 or 0}
