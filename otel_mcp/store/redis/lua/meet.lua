-- Note that a catalogue is listed. KEYS[1] those of the service: by digest, the microseconds when each was listed last,
-- and its summary. ARGV: digest, summary, microseconds that one stays known, how many are kept, ms that all are.
-- Returns the summaries of the others, newest first, where this one is new; else nothing.
local time = redis.call('TIME')
local now, all = time[1] * 1000000 + time[2], redis.call('HGETALL', KEYS[1])
local others, last = {}, nil
for at = 1, #all, 2 do
  local instant, summary = string.match(all[at + 1], '^(%d+) (.*)$')
  if all[at] == ARGV[1] then
    last = tonumber(instant)
  elseif instant then
    others[#others + 1] = {tonumber(instant), all[at], summary}
  end
end
table.sort(others, function(one, other) return one[1] > other[1] end)
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', now) .. ' ' .. ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
local found = {}
for at, other in ipairs(others) do
  if at < tonumber(ARGV[4]) then found[at] = other[3] else redis.call('HDEL', KEYS[1], other[2]) end
end
if last and (#others == 0 or last >= others[1][1] or now - last < tonumber(ARGV[3])) then return {} end
return found
