-- Change the entries of the table KEYS[1] that still have their former texts; return the names of the others. ARGV:
-- maximum number of entries, ms that the table is kept, then for each its name, its former text, its new text, and name
-- and text of the entry that it replaces ('' = none).
local missed = {}
for at = 3, #ARGV, 5 do
  local name, former, new, other, text = unpack(ARGV, at, at + 4)
  local held = redis.call('HMGET', KEYS[1], name, other)
  local adds = former == '' and other == ''
  if (held[1] or '') ~= former or (held[2] or '') ~= text
      or (adds and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[1])) then
    missed[#missed + 1] = name
  else
    redis.call('HDEL', KEYS[1], new == '' and name or other)
    if new ~= '' then redis.call('HSET', KEYS[1], name, new) end
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return missed
