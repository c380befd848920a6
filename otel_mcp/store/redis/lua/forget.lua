-- Take members out of the deadlines unless somebody has put them elsewhere since.
-- ARGV: member, deadline, member, deadline...
for at = 1, #ARGV, 2 do
  local score = redis.call('ZSCORE', KEYS[1], ARGV[at])
  if score and tonumber(score) == tonumber(ARGV[at + 1]) then redis.call('ZREM', KEYS[1], ARGV[at]) end
end
return 1
