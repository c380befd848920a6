-- Remember under KEYS[1] when a visitor began a session without a call: ARGV[1], in microseconds. ARGV: how many are
-- remembered, for how many ms. Returns all of them, separated by blanks.
local starts = {}
for instant in string.gmatch((redis.call('GET', KEYS[1]) or '') .. ' ' .. ARGV[1], '%d+') do
  starts[#starts + 1] = instant
end
local known = table.concat(starts, ' ', math.max(#starts - ARGV[2] + 1, 1))
redis.call('SET', KEYS[1], known, 'PX', ARGV[3])
return known
