-- Write the user's facts, attributes and extras into the document; an existing session keeps its calls and counts.
-- ARGV[1] its counts (JSON object), ARGV[2] facts, ARGV[3] attributes and extras, ARGV[4] calls.
-- Returns {status, whether this began the session}: written, foreign, or clock with the time here.
local f, now, s = cjson.decode(ARGV[1]), clock(), read_stats()
if math.abs(now - f.now) > SKEW then return {'clock', int(now)} end
local d = read_document(s)
if s.v and s.v ~= f.service then return {'foreign', 0} end
if d == false and redis.sha1hex(redis.call('GET', doc)) ~= f.replaces then return {'foreign', 0} end
if d and f.only_new == 1 then return {'written', 0} end -- Change nothing.
local set, begins = {}, not s.t or (s.x and not d)
if begins then
  s = {t = f.last, a = f.created, n = f.calls, r = f.requests, e = f.errors, b = f.context, l = f.listed,
       i = f.limit, x = f.ended, v = f.service, u = s.u, k = s.k}
end
if not d then d, s.c = {calls = ARGV[4]}, f.kept end
if not merge(d, ARGV[2], set) then return {'foreign', 0} end
d.rest, s.t = ARGV[3], math.max(s.t, f.last)
if begins then redis.call('DEL', stats) end
write(d, s, set, (begins or not s.x) and f.ttl)
return {'written', begins and 1 or 0}
