-- Apply one flush, once. ARGV[1] its counts (JSON object), ARGV[2] facts (JSON object of strings), ARGV[3] the new
-- calls, joined by ",\n". Returns {status, calls in total, flags, report or deadline, microseconds since a cut}:
--   written, or late: the session had ended; duplicate: seen before. If nothing is applied:
--   clock: the sender's differs; instead of the total: the time here;
--   look: the rounds in the document differ from those the sender read; fresh: they are of an earlier session;
--   expired: the end of an earlier session has to be reported first (its report); the retry has `announced`;
--   foreign: the document is not ours, flags 's' if there is a session; lost: late, and no document to count it;
--   bound: to another user, which the flags name; instead of the report: its deadline or 0.
-- Flags: c created, r resumed, e ended by this flush, whose sender then holds the end, l late, b back after a cut, h
-- with e: brief, its client may continue in another transport session.

-- Rounds of one logical call are one line. The sender has joined the new ones with lines of the document, which they
-- replace (ARGV[4]), and has found no line with a text of ARGV[5]; one per line. Returns nil if it has to read again,
-- else the calls without those lines, and the number of these.
local function take(calls)
  local lines, texts, rest, count = {}, {}, {}, 0
  for line in string.gmatch(ARGV[4] or '', '[^\n]+') do lines[line] = true end
  for text in string.gmatch(ARGV[5] or '', '[^\n]+') do texts[text] = true end
  if not (next(lines) or next(texts)) then return calls, 0 end
  for line in string.gmatch(calls .. ',', '([^\n]+),') do
    if lines[line] then lines[line], count = nil, count + 1 else rest[#rest + 1] = line end
  end
  if next(lines) then return nil end
  local left = table.concat(rest, ',\n')
  for _, name in ipairs({'"answers":"%w+"', '"waiting":"%w+"'}) do
    for text in string.gmatch(left, name) do
      if texts[text] then return nil end
    end
  end
  return left, count
end

local f, now = cjson.decode(ARGV[1]), clock()
if math.abs(now - f.now) > SKEW then return {'clock', int(now), '', false} end
local mark, claimer = 'p:' .. f.token, 'f:' .. f.token -- A different claimer than the sweeper of the same process.
local user, s, seen = f.user ~= '' and f.user or nil, read_stats(mark)
if seen then
  local sequence, flags = string.match(seen, '^(%d+) %d+ ?(%a*)$')
  if tonumber(sequence) >= f.sequence then
    local cut = string.find(flags, 'b', 1, true) and tonumber(string.match(s.z or '', '^%d+'))
    return {'duplicate', s.n or 0, flags, false, cut and int(after(cut, f.first, f.began))}
  end
elseif redis.call('HLEN', stats) > 48 then
  -- Forget the process with the oldest flush, if it will not repeat one any more, or there are very many.
  local all, oldest, since = redis.call('HGETALL', stats), nil, now
  for at = 1, #all, 2 do
    local instant = string.sub(all[at], 1, 2) == 'p:' and tonumber(string.match(all[at + 1], '^%d+ (%d+)'))
    if instant and instant < since then oldest, since = all[at], instant end
  end
  if oldest and (since < now - 3600000000 or #all > 530) then redis.call('HDEL', stats, oldest) end
end
-- A first flush may come from another service, which got a foreign id.
if s.v and s.v ~= f.service then return {'foreign', 0, '', false} end
-- `initialize` decides the user of a session, even if written late; without one the first message does.
local opens = f.opened == 1 and not s.k
if s.u and s.u ~= user and not opens then
  return {'bound', s.n or 0, s.u, s.t and not s.x and int(s.t + s.i) or '0'}
end

-- It continues in other transport sessions, even if its client closes one.
if f.lasting == 1 and s.x and is_brief(s) then
  redis.call('HDEL', stats, 'x', 'w')
  s.x, s.w = nil, nil
end
local lasts = f.lasting == 1 or (s.j and not s.x)
local mere = f.ended and f.requests == 0 and f.calls == 0
if lasts and f.reason == 'client_delete' then
  f.ended, mere = nil, mere and f.lasting == 0
end

local fresh, former = not s.t, nil
-- The mere end of a session that does not exist, or has ended, begins and changes nothing.
if mere and (fresh or s.x) then return {'late', s.n or 0, '', false} end
if s.x then
  -- Requests in flight do not reopen an ended session; another session under its id does.
  local at, reason = string.match(s.x, '^(%d+) (%S+)$')
  former = math.max(s.t or 0, at)
  -- One that has expired does so by its limit from then on; after a `delete` a process may go on with what it knows.
  fresh = reason == 'expired' and f.first > at + s.i or reason ~= 'expired' and f.created > at + 1000000 or
    reason == 'deleted' and f.first > tonumber(at)
  local owner, untill = string.match(s.w or '', '^(%S+) (%d+)$')
  if owner == claimer and f.announced == 1 then
    redis.call('HDEL', stats, 'w')
    s.w = nil
  elseif fresh and owner and
    (owner == claimer or string.sub(owner, 1, 2) == 'h:' or tonumber(untill) <= now) then
    -- The end of the earlier session is not reported, or the answer was lost.
    redis.call('HSET', stats, 'w', claimer .. ' ' .. int(now + LEASE))
    return {'expired', 0, '', report(read_document(s))}
  end
elseif s.t and f.first > s.t + s.i then
  if mere then
    expire(s, 'h:' .. f.token, now + LEASE)
    return {'late', s.n, 'e', false}
  end
  return {'expired', 0, '', expire(s, claimer, now + LEASE)}
end
local late = s.x and not fresh
local d = read_document(s)
if d == false then return {'foreign', 0, s.t and 's' or '', false} end
if late and not d then return {f.calls > 0 and 'lost' or 'late', s.n or 0, '', false} end
local calls, taken = '', 0
if d and not fresh then
  calls, taken = take(d.calls)
  if not calls then return {'look', s.n or 0, '', false} end
elseif fresh and (ARGV[4] or '') ~= '' then
  return {'fresh', 0, '', false}
end

local flags, set, unseen = late and 'l' or '', {}, fresh or not s.f
if fresh then
  if former then
    for _, names in ipairs({FIELDS, AT_END}) do redis.call('HDEL', stats, unpack(names)) end
    -- The process may know the id from the earlier session.
    if f.created <= former then f.created = f.first end
    s, opens = {d = former}, f.opened == 1
  end
  s.n, s.r, s.e, s.b, s.l, flags, d = 0, 0, 0, 0, 0, 'c', nil
end
if not d or not string.find(s.f or '', f.fingerprint, 1, true) then
  if not d then d, s.c, s.f = {rest = ',"attributes":{}', calls = ''}, 0, nil end
  if not merge(d, ARGV[2], set, lasts and f.lasting == 0) then return {'foreign', 0, 's', false} end
  s.f = string.sub(f.fingerprint .. ' ' .. (s.f or ''), 1, 62)
end
if f.ended and not late then
  s.x, s.w, flags = int(f.ended) .. ' ' .. f.reason, 'h:' .. f.token .. ' ' .. int(now + LEASE), flags .. 'e'
  f.last = math.max(f.last, f.ended)
end
if s.t and not late and s.t < f.start and f.start > (s.g or -60000000) + 60000000 then
  s.g, flags = f.start, flags .. 'r'
end
if not s.a or (f.created < s.a and f.created > (s.d or 0)) then s.a = f.created end
s.t, s.v = math.max(s.t or 0, f.last), f.service
if not s.i or not (late or (lasts and f.lasting == 0)) then s.i = f.limit end
s.n, s.r, s.e = s.n + f.calls - f.joined, s.r + f.requests, s.e + f.errors
if f.sent > 0 then
  d.calls, s.c = calls .. (calls == '' and '' or ',\n') .. ARGV[3], s.c + f.sent - taken
end
s.b, s.l = (s.b or 0) + f.context, (s.l or 0) + f.listed
if opens or (unseen and not s.k) then s.u, s.k = user, opens and '1' end
if opens and not user then redis.call('HDEL', stats, 'u') end
s.y, s.j = s.y or (f.visitor ~= '' and f.visitor or nil), s.j or (f.lasting == 1 and '1' or nil)
if f.ended and not late and is_brief(s) then
  s.w, flags = 'h:' .. f.token .. ' ' .. int(now + BRIEF + LEASE), flags .. 'h'
end
if f.sent > 0 then
  if s.c > 2 * f.cap or (f.sent == f.cap and f.calls > f.cap) then
    -- There is no room, or a gap between the stored calls and the newest ones.
    local from = 1
    for _ = 1, s.c - f.cap do from = (string.find(d.calls, '\n', from, true) or #d.calls) + 1 end
    d.calls, s.c = string.sub(d.calls, from), f.cap
  end
end
local since = s.z and not late and f.requests + f.calls > 0 and come_back(s, f.first, f.began)
if since then flags = flags .. 'b' end
set[#set + 1], set[#set + 2] = mark, int(f.sequence) .. ' ' .. int(now) .. ' ' .. flags
write(d, s, set, not late and f.ttl)
return {late and 'late' or 'written', s.n, flags, false, since and int(since)}
