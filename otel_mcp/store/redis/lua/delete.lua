-- Remove a session at once; requests in flight must not bring it back, and no other user may take its id. ARGV: digest
-- of the service, SHA-1 of a document of another writer that may be removed, '1' if the next sweep is to report its
-- end. Returns {status, whether a document was there}: written or foreign.
local s = read_stats()
local d, ended = read_document(s), int(clock()) .. ' deleted'
if s.v and s.v ~= ARGV[1] then return {'foreign', 0} end
if d == false and redis.sha1hex(redis.call('GET', doc)) ~= ARGV[2] then return {'foreign', 0} end
if not s.t and d == nil then return {'written', 0} end
redis.call('DEL', doc)
if s.x and s.w then return {'written', d == nil and 0 or 1} end -- Its end has still to be reported.
if ARGV[3] == '1' and s.t then
  if not s.x then
    redis.call('HSET', stats, 'x', ended, 'w', '- 0')
    s.w = '-'
  end
else
  redis.call('DEL', stats)
  redis.call('HSET', stats, 'x', ended)
  for _, name in ipairs({'u', 'k'}) do if s[name] then redis.call('HSET', stats, name, s[name]) end end
end
redis.call('PEXPIRE', stats, kept(s))
return {'written', d == nil and 0 or 1}
