-- Common to all scripts of one session, after two lifetimes in ms: GRACE, ABANDONED.
-- KEYS[1] its document, KEYS[2] its stats, in one hash slot. Instants are
-- microseconds of Unix time, as decimal text.
--
-- The document is appended in place, so its text is in five parts:
--   {facts  ,attributes and extras  ,"created_at":"..","tool_calls":[  calls  ],"last_activity":..}
--   0       b                                                         c      k                     len
-- One raw newline stands between two calls, and nowhere else: JSON text has none.
--
-- Fields of the stats, 64 bytes at most each, so that the hash stays small:
--   t last activity, a creation ("instant iso"); d end of an earlier session under
--   the id, before which this one cannot have begun; n calls, r requests, e errors;
--   i limit; o offsets "b c k len calls"; g last counted process start;
--   f fingerprints of facts that were merged; x end "iso reason instant";
--   v digest of the service it is of; u keyed hash of the user it is bound to,
--   absent where it is nobody's; k there where that is the user of `initialize`;
--   w who reports the end "token until", where nobody has yet;
--   p:<token> "sequence seconds flags";
--   lc lv lp ls lq labels of the end report.
local doc, stats = KEYS[1], KEYS[2]
local unpack = unpack or table.unpack
local TAIL = '],"last_activity":"'
local BEFORE_CALLS = '","tool_calls":['
local FACTS = {'session_id', 'service', 'user_agent', 'client_name', 'client_version',
               'protocol_version', 'source', 'conversation_id', 'previous_id'}
local LABELS = {lc = 'client_name', lv = 'client_version', lp = 'protocol_version',
                ls = 'source', lq = 'previous_id'}

local function int(number) return string.format('%.0f', number) end

local function instant(field)
  if not field then return nil, nil end
  local at, iso = string.match(field, '^(%d+) (%S+)$')
  return tonumber(at), iso
end

-- The text from the end of the calls to before the closing brace.
local function tail(calls, errors, requests, last_iso, ended)
  local text = TAIL .. last_iso .. '","tool_call_count":' .. calls .. ',"error_count":' .. errors ..
    ',"request_count":' .. requests
  if ended then
    local at, reason = string.match(ended, '^(%S+) (%S+)')
    text = text .. ',"ended":{"at":"' .. at .. '","reason":"' .. reason .. '"}'
  end
  return text
end

local function offsets(field)
  local b, c, k, len, calls = string.match(field or '', '^(%d+) (%d+) (%d+) (%d+) (%d+)$')
  return b and {b = tonumber(b), c = tonumber(c), k = tonumber(k), len = tonumber(len), calls = tonumber(calls)}
end

local function pack(o) return o.b .. ' ' .. o.c .. ' ' .. o.k .. ' ' .. o.len .. ' ' .. o.calls end

-- 'ours' as the stats describe it, 'missing', or 'foreign'.
local function condition(o)
  if o then
    local text = redis.call('GETRANGE', doc, o.k, -1)
    if #text == o.len - o.k and string.sub(text, 1, #TAIL) == TAIL then return 'ours' end
  end
  if redis.call('EXISTS', doc) == 0 then return 'missing' end
  return 'foreign'
end

-- Overwrite the end of the document from k on; it must never become shorter.
local function put_tail(o, calls_text, calls, text)
  local short = o.len - (o.k + #calls_text + #text + 1)
  if short > 0 then text = text .. string.rep(' ', short) end
  redis.call('SETRANGE', doc, o.k, calls_text .. text .. '}')
  o.k = o.k + #calls_text
  o.len = o.k + #text + 1
  o.calls = calls
end

-- Write a whole document; returns its offsets.
local function put_document(facts, rest, created_iso, calls_text, calls, text)
  local o = {b = #facts}
  local head = facts .. rest .. ',"created_at":"' .. created_iso .. BEFORE_CALLS
  o.c = #head
  o.k = o.c + #calls_text
  o.len = o.k + #text + 1
  o.calls = calls
  redis.call('SET', doc, head .. calls_text .. text .. '}', 'KEEPTTL')
  return o
end

-- Append calls and keep the newest `cap` of all.
local function drop_calls(o, calls_text, sent, cap, text)
  local all = redis.call('GETRANGE', doc, o.c, o.k - 1) .. (o.calls > 0 and ',\n' or '') .. calls_text
  local from = 1
  for _ = 1, o.calls + sent - cap do from = string.find(all, '\n', from, true) + 1 end
  all = string.sub(all, from)
  local head = redis.call('GETRANGE', doc, 0, o.c - 1)
  redis.call('SET', doc, head .. all .. text .. '}', 'KEEPTTL')
  o.k, o.calls = o.c + #all, cap
  o.len = o.k + #text + 1
end

local function facts_text(facts)
  local parts = {}
  for _, name in ipairs(FACTS) do
    if facts[name] then parts[#parts + 1] = '"' .. name .. '":' .. cjson.encode(facts[name]) end
  end
  return '{' .. table.concat(parts, ',')
end

-- The facts of the document with `news` over them, or nil if they cannot be read.
local function merged_facts(o, news)
  local readable, facts = pcall(cjson.decode, redis.call('GETRANGE', doc, 0, o.b - 1) .. '}')
  if not readable or type(facts) ~= 'table' then return nil end
  for _, name in ipairs(FACTS) do
    if news[name] then facts[name] = news[name] end
  end
  return facts_text(facts)
end

-- Put other facts (and attributes, unless nil) before the rest of the document.
local function replace_head(o, facts, attributes)
  local created = o.c - #BEFORE_CALLS - 27 - #',"created_at":"'
  local middle = attributes or redis.call('GETRANGE', doc, o.b, created - 1)
  local rest = redis.call('GETRANGE', doc, created, -1)
  redis.call('SET', doc, facts .. middle .. rest, 'KEEPTTL')
  local moved = #facts + #middle - created
  o.b, o.c, o.k, o.len = #facts, o.c + moved, o.k + moved, o.len + moved
end

-- Whether the session that stands here is that of another service on the same server.
local function of_another(field, facts)
  local o = offsets(field)
  if not o or condition(o) ~= 'ours' then return false end
  local readable, held = pcall(cjson.decode, redis.call('GETRANGE', doc, 0, o.b - 1) .. '}')
  return readable and type(held) == 'table' and held.service ~= nil and held.service ~= cjson.decode(facts).service
end

-- Whether somebody else than `user` ('' = nobody) asks for what is bound to a user.
local function is_bound_to_another(bound, user) return bound and bound ~= user end

local function add_labels(set, facts)
  for field, name in pairs(LABELS) do
    if facts[name] then
      set[#set + 1] = field
      set[#set + 1] = facts[name]
    end
  end
end

-- What the one who reports the end needs.
local function report()
  return redis.call('HMGET', stats, 'x', 'a', 'i', 't', 'n', 'e', 'r', 'lc', 'lv', 'lp', 'ls', 'lq')
end

-- Mark the session as ended where its document still stands.
local function close_document(s, ended)
  local o = offsets(s.o)
  if not o or condition(o) ~= 'ours' then return end
  local _, last_iso = instant(s.t)
  put_tail(o, '', o.calls, tail(s.n, s.e, s.r, last_iso, ended))
  redis.call('HSET', stats, 'o', pack(o))
  redis.call('PEXPIRE', doc, GRACE)
end

-- Its time is over: end it, and let `token` report that until `lease`.
local function expire(s, token, lease)
  local last, last_iso = instant(s.t)
  local ended = last_iso .. ' expired ' .. int(last)
  -- First: a server without free memory lets a script go on that has begun to write.
  redis.call('PEXPIRE', stats, GRACE + 60000)
  close_document(s, ended)
  redis.call('HSET', stats, 'x', ended, 'w', token .. ' ' .. int(lease))
  return report()
end

-- Forget those of the many processes that wrote here that cannot repeat a flush any more.
local function forget_processes(now)
  local all, marks = redis.call('HGETALL', stats), {}
  for at = 1, #all, 2 do
    if string.sub(all[at], 1, 2) == 'p:' then
      marks[#marks + 1] = {all[at], tonumber(string.match(all[at + 1], '^%d+ (%d+)')) or 0}
    end
  end
  table.sort(marks, function(one, other) return one[2] < other[2] end)
  for at = 1, #marks - 24 do
    if marks[at][2] < now / 1000000 - 900 or #marks - at >= 256 then redis.call('HDEL', stats, marks[at][1]) end
  end
end
