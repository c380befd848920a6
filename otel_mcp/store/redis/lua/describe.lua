-- Describe an id. KEYS[3] its successor. ARGV: digest of the service; a session of another service counts as over.
-- Returns {exists, ended, successor, user, whether `initialize` named it, name and version of the client, facts,
-- creation, limit, calls, visitor, whether it lasts, whether it may continue in another transport session}. An ended
-- session exists only if it may.
local s, successor = read_stats(), redis.pcall('GET', KEYS[3])
if type(successor) == 'table' then successor = false end
if s.v and s.v ~= ARGV[1] then return {0, 1, successor, false, false, false, false} end
local over = s.x or (s.t and s.t + s.i <= clock())
local may_go_on = s.t and (is_brief(s) or (not over and (s.j or s.n <= 1)))
local d = s.t and (not over or may_go_on) and read_document(s)
local client = redis.call('HMGET', stats, 'client_name', 'client_version')
if not d then return {0, over and 1 or 0, successor, s.u or false, s.k or false, client[1], client[2]} end
return {1, over and 1 or 0, successor, s.u or false, s.k or false, client[1], client[2], d.facts .. '}', int(s.a), int(s.i), s.n,
        s.y or false, s.j and 1 or 0, may_go_on and 1 or 0}
