-- The server has refused this session as unknown. ARGV: when; start of the process that has seen it, and its token;
-- whether that process has served the session ('1' yes, '0' not as far as it knows, '' unknown); digest of the
-- service; user ('' = nobody); tokens of processes that have ended.
-- Returns false if that cuts nothing: the session is over, another user's, cut already, or continues in other transport
-- sessions, since its client closed the one of that id. Else {cause, visitor, creation, limit, calls, facts of AT_END},
-- and the same again for the same arguments.
local at, start, token, user = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[6]
local s, written = read_stats('p:' .. token)
if not s.t or s.j or s.v ~= ARGV[5] or (s.u and s.u ~= user) or s.t + s.i <= at then return false end
-- A session that the server has closed is cut too, if its client still uses it.
if s.x and string.match(s.x, '%S+$') ~= 'server_closed' then return false end
local cause = s.a < start and 'restart' or 'replica'
if ARGV[4] == '1' or (ARGV[4] == '0' and written) then
  cause = 'idle_reaper'
elseif cause == 'replica' and #ARGV > 6 then
  -- An older process may get the requests of one that was replaced.
  local all, last, since = redis.call('HGETALL', stats), '', 0
  for field = 1, #all, 2 do
    local instant = string.sub(all[field], 1, 2) == 'p:' and tonumber(string.match(all[field + 1], '^%d+ (%d+)'))
    if instant and instant > since then last, since = string.sub(all[field], 3), instant end
  end
  for each = 7, #ARGV do cause = ARGV[each] == last and 'restart' or cause end
end
local when, was, waits, causes, marker = string.match(s.z or '', '^(%d+) (%S+) (%d) (%a+) (%S+)')
if marker == token and tonumber(when) == at then
  cause = was -- The answer was lost.
else
  local again = causes and string.find(causes, string.sub(cause, 3, 3), 1, true)
  -- Each restart counts, the other causes once.
  if waits == '1' or (again and not (cause == 'restart' and start > tonumber(when))) then return false end
  local d = read_document(s)
  if not d then return false end
  s.z = table.concat({int(at), cause, '1', (causes or '') .. (again and '' or string.sub(cause, 3, 3)), token}, ' ')
  write(d, s, {})
end
return {cause, redis.call('HMGET', stats, 'y')[1], int(s.a), int(s.i), s.n, unpack(redis.call('HMGET', stats, unpack(AT_END)))}
