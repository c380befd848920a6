-- Put the user's facts, attributes and extras into the document; calls and
-- counts of a session that exists stand as they are.
-- ARGV[1] scalars (JSON array), ARGV[2] facts, ARGV[3] attributes and extras,
-- ARGV[4] calls, ARGV[5] SHA-1 of an unrecorded document that may be replaced.
-- Returns {status, created}: 1 written, 5 the document is not ours.
local a = cjson.decode(ARGV[1])
local last, last_iso, created, created_iso, requests, errors, calls, kept, limit, start, ttl, service =
  a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12]
local raw = redis.call('HMGET', stats, 't', 'a', 'n', 'r', 'e', 'i', 'o', 'x', 'v', 'u', 'k')
local s = {t = raw[1], a = raw[2], n = raw[3], r = raw[4], e = raw[5], i = raw[6], o = raw[7], x = raw[8]}
local o = offsets(s.o)
local state = condition(o)
if state == 'foreign' then
  if ARGV[5] == '' or redis.sha1hex(redis.call('GET', doc)) ~= ARGV[5] then return {5, 0} end
  state = 'missing'
end
if s.t and s.x and state == 'missing' then s = {} end
if raw[9] and raw[9] ~= service and not s.x then return {5, 0} end
if s.t and of_another(s.o, ARGV[2]) then return {5, 0} end

local news = cjson.decode(ARGV[2])
local set, made = {}, 0
if s.t then
  local known_last, known_last_iso = instant(s.t)
  if known_last_iso >= last_iso then last, last_iso = known_last, known_last_iso end
  created, created_iso = instant(s.a)
  requests, errors, calls, limit = s.r, s.e, s.n, tonumber(s.i)
else
  redis.call('DEL', stats)
  s.x = false
  made = 1
  requests, errors, calls = int(requests), int(errors), int(calls)
  set = {'a', int(created) .. ' ' .. created_iso, 'n', calls, 'r', requests, 'e', errors,
         'i', int(limit), 'v', service}
  if raw[10] then set[#set + 1], set[#set + 2] = 'u', raw[10] end
  if raw[11] then set[#set + 1], set[#set + 2] = 'k', raw[11] end
end
local text = tail(calls, errors, requests, last_iso, s.x)
if state == 'ours' then
  local facts = merged_facts(o, news)
  if not facts then return {5, 0} end
  replace_head(o, facts, ARGV[3])
  put_tail(o, '', o.calls, text)
else
  o = put_document(string.sub(ARGV[2], 1, -2), ARGV[3], created_iso, ARGV[4], kept, text)
end
add_labels(set, news)
local count = #set
set[count + 1], set[count + 2] = 't', int(last) .. ' ' .. last_iso
set[count + 3], set[count + 4] = 'o', pack(o)
redis.call('HSET', stats, unpack(set))
if not s.x then
  redis.call('PEXPIRE', doc, int(ttl))
  redis.call('PEXPIRE', stats, int(math.max(ttl, limit / 1000) + ABANDONED))
end
return {1, made}
