-- What is known of an id. KEYS[3] its successor. ARGV: now.
-- Returns {exists, ended, successor, user, whether `initialize` has said so, facts, creation, limit, calls}.
local raw = redis.call('HMGET', stats, 't', 'i', 'x', 'o', 'a', 'u', 'n', 'k')
local next_id = redis.pcall('GET', KEYS[3])
if type(next_id) == 'table' then next_id = false end
local last = instant(raw[1])
local over = raw[3] or (last and last + tonumber(raw[2]) <= tonumber(ARGV[1]))
local o = offsets(raw[4])
if not last or over or not o or condition(o) ~= 'ours' then return {0, over and 1 or 0, next_id, raw[6], raw[8]} end
local created = instant(raw[5])
return {1, 0, next_id, raw[6], raw[8], redis.call('GETRANGE', doc, 0, o.b - 1) .. '}', int(created), raw[2], raw[7]}
