-- Common to all scripts of one session. KEYS[1] its document, KEYS[2] its stats, in one hash slot. Instants are
-- microseconds of Unix time by the server's clock. codec.py puts constants and the names of facts in front.
-- The document is JSON in lines, which are split without parsing, since JSON text has no raw newline: facts;
-- attributes and extras; creation; the calls, one each; activity, counts and end.
-- Fields of the stats, at most 64 bytes each, so that the hash stays small:
--   t last activity, a creation; d end of an earlier session under the id, before which this one cannot have begun;
--   n calls, r requests, e errors; c calls that the document holds; i limit; g last counted process start;
--   b bytes given to the model, l those of them for the list of tools;
--   f fingerprints of facts that were merged; x end "instant reason"; w who reports the end "token until", if
--   nobody has yet (h:<token>: it holds the end and has not read its report); o outcome, once it is reported;
--   v digest of the service; u keyed hash of the user it is bound to, absent if there is none;
--   k present if that is the user of `initialize`; y visitor; m findings, separated by blanks; j present if it lasts
--   over many transport sessions, each of which the client closes after a call;
--   z newest cut "instant cause waits causes token other": waits 1 until the client is back, all causes so far (a letter
--   each), who has marked it, digest of the session with which its client is back, if that is another one; p:<token> a process's last flush
--   "sequence instant flags"; the facts of AT_END under their names.
local doc, stats = KEYS[1], KEYS[2]
local unpack = unpack or table.unpack
local FIELDS, NUMBERS =
  {'t', 'a', 'd', 'n', 'r', 'e', 'c', 'i', 'g', 'b', 'l', 'f', 'x', 'w', 'v', 'u', 'k', 'y', 'm', 'o', 'z', 'j'}, 11

local function int(number) return string.format('%.0f', number) end
local function clock() local time = redis.call('TIME') return time[1] * 1000000 + time[2] end

-- Count years from March, so that the leap day is the last of its year: centuries, years, months of 153 / 5 days.
local function iso(instant)
  local seconds = math.floor(instant / 1000000)
  local century = 4 * math.floor(seconds / 86400) + 2877875
  local year = 4 * math.floor(century % 146097 / 4) + 3
  local month = 5 * math.floor(year % 1461 / 4) + 461
  local day = math.floor(month % 153 / 5) + 1
  century, year, month = math.floor(century / 146097), math.floor(year / 1461), math.floor(month / 153)
  year, month = 100 * century + year + (month > 12 and 1 or 0), month > 12 and month - 12 or month
  return string.format('%04d-%02d-%02dT%02d:%02d:%02d.%06dZ', year, month, day, math.floor(seconds / 3600) % 24,
    math.floor(seconds / 60) % 60, seconds % 60, instant - seconds * 1000000)
end

-- Return the stats, without absent fields, and the value of one more field.
local function read_stats(more)
  local found, s = redis.call('HMGET', stats, more or 'x', unpack(FIELDS)), {}
  for at, name in ipairs(FIELDS) do
    -- No number if another writer has changed it.
    if found[at + 1] then s[name] = at > NUMBERS and found[at + 1] or tonumber(found[at + 1]) end
  end
  return s, found[1]
end

-- Return the parts of the document; nil if there is none, false if the stats do not belong to it.
local function read_document(s)
  local text = redis.call('GET', doc)
  if not text then return nil end
  local facts = s.t and string.sub(text, 1, 14) == '{"session_id":' and string.find(text, '\n', 1, true)
  local rest = facts and string.find(text, '\n', facts + 1, true)
  local created = rest and string.find(text, '\n', rest + 1, true)
  local calls = created and string.find(text, '\n],"last_activity":"', created, true)
  return calls and {facts = string.sub(text, 1, facts - 1), rest = string.sub(text, facts + 1, rest - 1),
                    calls = string.sub(text, created + 1, calls - 1)} or false
end

-- Return the ms that the stats of an ended session stay: until its end is reported and requests in flight have come.
local function kept(s) return s.w and ABANDONED or GRACE + 60000 end

-- Write both keys, and `set` into the stats. If the session has ended they stay for GRACE, else for at least `ttl` ms;
-- without a `ttl` their expiry does not change.
local function write(d, s, set, ttl)
  for at, name in ipairs(FIELDS) do
    if s[name] then set[#set + 1], set[#set + 2] = name, at <= NUMBERS and int(s[name]) or s[name] end
  end
  redis.call('HSET', stats, unpack(set))
  local at, reason = string.match(s.x or '', '^(%d+) (%S+)$')
  local cut, cause = string.match(s.z or '', '^(%d+) (%S+)')
  local text = table.concat({d.facts, d.rest, ',"created_at":"' .. iso(s.a) .. '","tool_calls":[', d.calls,
    '],"last_activity":"' .. iso(s.t) .. '","tool_call_count":' .. int(s.n) .. ',"error_count":' .. int(s.e) ..
    ',"request_count":' .. int(s.r) .. ',"context_bytes":' .. int(s.b or 0) .. ',"catalogue_bytes":' .. int(s.l or 0) ..
    (s.m and ',"findings":["' .. string.gsub(s.m, ' ', '","') .. '"]' or '') ..
    (s.o and ',"outcome":"' .. s.o .. '"' or '') ..
    (cut and ',"interrupted":{"at":"' .. iso(cut) .. '","cause":"' .. cause .. '"}' or '') ..
    (at and ',"ended":{"at":"' .. iso(at) .. '","reason":"' .. reason .. '"}}' or '}')
  }, '\n')
  local left = ttl and (s.x and GRACE or ttl) or redis.call('PTTL', doc)
  redis.call('SET', doc, text, unpack(left > 0 and {'PX', int(left)} or {}))
  if ttl then redis.call('PEXPIRE', stats, int(s.x and kept(s) or math.max(ttl, s.i / 1000) + ABANDONED)) end
end

-- Return whether its client closed it after at most one call, and that is not reported yet: it may continue in another.
local function is_brief(s)
  return (s.j or (s.n or 2) <= 1) and s.y and string.find(s.x or '', 'client_delete', 1, true) and
    string.sub(s.w or '', 1, 2) == 'h:'
end

-- Merge `news` into the facts of the document, and those of the end report into `set`; false if they are unreadable.
-- With `sourced` the source does not change.
local function merge(d, news, set, sourced)
  local readable, facts = pcall(cjson.decode, (d.facts or '{') .. '}')
  if not readable then return false end
  local parts, new = {}, cjson.decode(news)
  new.source = not sourced and new.source or nil
  for _, name in ipairs(FACTS) do
    local value = new[name] or facts[name]
    if value then parts[#parts + 1] = '"' .. name .. '":' .. cjson.encode(value) end
  end
  for _, name in ipairs(AT_END) do
    if new[name] then set[#set + 1], set[#set + 2] = name, new[name] end
  end
  d.facts = '{' .. table.concat(parts, ',')
  return true
end
-- Return the values for the report of the end; `d` the document, if there is one.
local function report(d)
  local found = redis.call('HMGET', stats, 'x', 'a', 'i', 't', 'n', 'e', 'r', 'b', 'y', 'm', unpack(AT_END))
  found[#found + 1] = d and d.calls or ''
  return found
end

-- Return the microseconds from a cut to requests of which the newest `began` then. A request that began before the cut
-- and ended later is not after it. All of them have ended since `first`.
local function after(cut, first, began) return (first > cut and math.min(first, began) or began) - cut end

-- Note that a cut session continues with such requests. Returns the microseconds since the cut; nil if no cut waits,
-- or if all requests were before it or too late.
local function come_back(s, first, began)
  local at, cause, waits, rest = string.match(s.z or '', '^(%d+) (%S+) (%d) (.+)$')
  local since = waits == '1' and after(tonumber(at), first, began)
  if not since or since <= 0 or since > LOST then return nil end
  s.z = at .. ' ' .. cause .. ' 0 ' .. rest
  return since
end

-- End an expired session; `token` may report that until `lease`.
local function expire(s, token, lease)
  local d = read_document(s)
  s.x, s.w = int(s.t) .. ' expired', token .. ' ' .. int(lease)
  -- First: a server without free memory lets a script continue that has begun to write.
  redis.call('PEXPIRE', stats, kept(s))
  redis.call('HSET', stats, 'x', s.x, 'w', s.w)
  if d then write(d, s, {}, GRACE) end
  return report(d)
end
