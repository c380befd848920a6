-- Apply one flush, once. ARGV[1] scalars (JSON array), ARGV[2] facts (JSON object
-- of strings), ARGV[3] the new calls, joined by ",\n".
-- Returns {status, calls in total, flags, end report}:
-- 1 written, 2 seen before, 3 the end of an earlier session has to be reported first
-- (nothing applied; the next try says so in `told`), 4 late: the session had ended,
-- 5 the document is not ours, nor is there any session, 6 the document is not ours
-- any more, 7 late, and nowhere to count it, 8 the session is another user's
-- (nothing applied; in place of flags whose it is, in place of the report its deadline, or 0).
-- Flags: c created, r resumed, e ended by this flush, l late.
local a = cjson.decode(ARGV[1])
local token, sequence, now, first, first_iso, last, last_iso, created, created_iso =
  a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9]
local requests, errors, calls, sent, limit, start, fingerprint, ttl, cap, lease =
  a[10], a[11], a[12], a[13], a[14], a[15], a[16], a[17], a[18], a[19]
local user, service, told, opened = a[20], a[21], a[22], a[23]
local ended_iso, reason, ended = a[24], a[25], a[26]
local claimer = 'f:' .. token -- Another one than the sweeper of the same process.

local mark = 'p:' .. token
local raw = redis.call('HMGET', stats, 't', 'a', 'n', 'r', 'e', 'i', 'o', 'g', 'f', 'x', mark, 'd', 'u', 'w', 'v', 'k')
local s = {t = raw[1], a = raw[2], n = raw[3], r = raw[4], e = raw[5], i = raw[6], o = raw[7], g = raw[8],
           f = raw[9], x = raw[10], d = raw[12], u = raw[13], k = raw[16]}

if raw[11] then
  local seen, flags = string.match(raw[11], '^(%d+) %d+ ?(%a*)$')
  if seen and tonumber(seen) >= sequence then
    -- Not of another session, which has begun under the id since.
    local own = s.x and string.match(s.x, '^%S+ (%S+)') == reason
    return {2, tonumber(s.n) or 0, flags, own and string.find(flags, 'e', 1, true) and report() or false}
  end
elseif redis.call('HLEN', stats) > 48 then
  forget_processes(now)
end

local known_last, known_last_iso = instant(s.t)
local known_created, known_created_iso = instant(s.a)
local fresh, late = not s.t and not s.x, false

-- Who flushes here for the first time may be another service, which was given a foreign id.
if raw[15] and raw[15] ~= service and (not s.x or raw[14]) then return {5, 0, '', false} end
if s.t and not string.find(s.f or '', fingerprint, 1, true) and of_another(s.o, ARGV[2]) then
  return {5, 0, '', false}
end
-- Whose it is `initialize` says, which may be written late, else the first message.
local opens = opened == 1 and not s.k
if is_bound_to_another(s.u, user) and not opens then
  return {8, tonumber(s.n) or 0, s.u, s.t and not s.x and int(known_last + tonumber(s.i)) or '0'}
end

if s.x then
  -- In-flight requests of an ended session do not reopen it; another session under its id does.
  local _, why, at = string.match(s.x, '^(%S+) (%S+) (%d+)$')
  if why == 'expired' then
    -- Not by the last activity, which whatever was in flight has moved.
    fresh = first > tonumber(at) + tonumber(s.i)
  else
    -- After a `delete` a process goes on with the session that it knows.
    fresh = created > tonumber(at) + 1000000 or (why == 'deleted' and first > tonumber(at))
  end
  late = not fresh
  local owner, untill = string.match(raw[14] or '', '^(%S+) (%d+)$')
  if owner == claimer and told == 1 then
    redis.call('HDEL', stats, 'w')
  elseif fresh and owner and (owner == claimer or tonumber(untill) <= now) then
    -- Of the end before this session nobody has been told, or the answer was lost.
    redis.call('HSET', stats, 'w', claimer .. ' ' .. int(lease))
    return {3, 0, '', report()}
  end
elseif known_last and first > known_last + tonumber(s.i) then
  return {3, 0, '', expire(s, claimer, lease)}
end

-- The mere end of a session that is not there begins none.
if fresh and ended_iso and requests == 0 and calls == 0 then return {4, 0, '', false} end

local o = offsets(s.o)
local state = condition(o)
if state == 'foreign' then return {s.t and 6 or 5, 0, '', false} end
if late and state == 'missing' then return {calls > 0 and 7 or 4, tonumber(s.n) or 0, '', false} end

local flags, set = late and 'l' or '', {}
if fresh then
  opens = opened == 1 and not (s.k and not s.x)
  if s.x then
    redis.call('HDEL', stats, 'x', 'w', 'f', 'lc', 'lv', 'lp', 'ls', 'lq', 'u', 'k')
    -- The process may have met the id in its former life.
    local former = math.max(known_last or 0, tonumber(string.match(s.x, '(%d+)$')))
    if created <= former then created, created_iso = first, first_iso end
    set = {'d', int(former)}
  end
  s = {n = 0, r = 0, e = 0, k = not s.x and s.k}
  known_last, known_last_iso, known_created, known_created_iso = nil, nil, nil, nil
  flags = 'c'
end

local x = late and s.x or nil
if ended_iso and not late then
  x = ended_iso .. ' ' .. reason .. ' ' .. int(ended)
  flags = flags .. 'e'
  set[#set + 1] = 'x'
  set[#set + 1] = x
  if ended_iso > last_iso then last, last_iso = ended, ended_iso end
end
if not late and not fresh and known_last < start and start > (tonumber(s.g) or -60000000) + 60000000 then
  flags = flags .. 'r'
  set[#set + 1] = 'g'
  set[#set + 1] = int(start)
end
if known_last_iso and known_last_iso >= last_iso then last, last_iso = known_last, known_last_iso end
local moved = not known_created or (created < known_created and created > (tonumber(s.d) or 0))
if not moved then created, created_iso = known_created, known_created_iso end
local total = int(s.n + calls)
local text = tail(total, int(s.e + errors), int(s.r + requests), last_iso, x)

if fresh or state == 'missing' then
  o = put_document(string.sub(ARGV[2], 1, -2), ',"attributes":{}', created_iso, ARGV[3], sent, text)
  set[#set + 1] = 'f'
  set[#set + 1] = fingerprint
  add_labels(set, cjson.decode(ARGV[2]))
else
  if not string.find(s.f or '', fingerprint, 1, true) then
    local news = cjson.decode(ARGV[2])
    local facts = merged_facts(o, news)
    if not facts then return {6, 0, '', false} end
    replace_head(o, facts)
    set[#set + 1] = 'f'
    set[#set + 1] = string.sub(fingerprint .. ' ' .. (s.f or ''), 1, 62)
    add_labels(set, news)
  end
  if moved then redis.call('SETRANGE', doc, o.c - #BEFORE_CALLS - 27, created_iso) end
  if sent == 0 then
    put_tail(o, '', o.calls, text)
  elseif o.calls + sent <= 2 * cap and (sent < cap or sent == calls) then
    put_tail(o, (o.calls > 0 and ',\n' or '') .. ARGV[3], o.calls + sent, text)
  else
    -- There is no room, or a gap between the calls there and the newest ones.
    drop_calls(o, ARGV[3], sent, cap, text)
  end
end

local count = #set
set[count + 1], set[count + 2] = 't', int(last) .. ' ' .. last_iso
set[count + 3], set[count + 4] = 'n', total
set[count + 5], set[count + 6] = 'r', int(s.r + requests)
set[count + 7], set[count + 8] = 'e', int(s.e + errors)
set[count + 9], set[count + 10] = 'o', pack(o)
set[count + 11], set[count + 12] = mark, int(sequence) .. ' ' .. int(math.floor(now / 1000000)) .. ' ' .. flags
if moved then
  set[#set + 1] = 'a'
  set[#set + 1] = int(created) .. ' ' .. created_iso
end
if not late and s.i ~= int(limit) then
  set[#set + 1] = 'i'
  set[#set + 1] = int(limit)
end
if raw[15] ~= service then
  set[#set + 1] = 'v'
  set[#set + 1] = service
end
if opens and user == '' then redis.call('HDEL', stats, 'u') end
if user ~= '' and (opens or (not s.k and (fresh or not s.f))) then
  set[#set + 1] = 'u'
  set[#set + 1] = user
end
if opens then
  set[#set + 1] = 'k'
  set[#set + 1] = '1'
end
redis.call('HSET', stats, unpack(set))
if not late then
  redis.call('PEXPIRE', doc, x and GRACE or int(ttl))
  redis.call('PEXPIRE', stats, x and GRACE + 60000 or int(math.max(ttl, limit / 1000) + ABANDONED))
end
return {late and 4 or 1, tonumber(total), flags, string.find(flags, 'e', 1, true) and report() or false}
