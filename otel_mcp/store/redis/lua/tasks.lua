-- What messages have shown of tasks. KEYS[1]: the tasks of the service, by the hash of their ids, instants in
-- microseconds: "until began status ended fetched batch link tool", where began is 0 before the call is known that begins it.
-- ARGV: now; how many are kept; for how long one is that is over; ms that all are; the batch; then of each
-- of the news key, instant, status, when it ended, until, fetched, began, link, tool ('-' and 0 = not said).
-- Without news it counts instead, and takes out those whose time is over.
-- A batch that is sent again is answered again: the one that has reported the end of a task is kept with it, and as '!' and
-- the batch the one after which nothing of it is to be reported.
-- Returns the ends, each as tool, status, microseconds ('' = never fetched), and the links of the news, or what is counted:
-- tool, status, how many, when the oldest began.
local FINAL = {completed = true, failed = true, cancelled = true}
local now, most, kept, batch = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[5]

local function read(text)
  local till, began, status, ended, fetched, batch, link, tool =
    string.match(text or '', '^(%d+) (%d+) (%S+) (%d+) ([01]) (%S+) (%S+) (.*)$')
  return till and {
    till = tonumber(till), began = tonumber(began), status = status, ended = tonumber(ended), fetched = fetched == '1',
    batch = batch, link = link, tool = tool,
  }
end

local function is_over(task)
  return task.batch ~= '-' and (task.fetched or task.status == 'cancelled' or string.sub(task.batch, 1, 1) == '!')
end

local function whole(number)
  return string.format('%.0f', number)
end

local ends, answers = {}, {}
local function report(task, lasted)
  ends[#ends + 1] = {task.tool, task.status, lasted}
end

local function write(key, task)
  redis.call('HSET', KEYS[1], key, table.concat({
    whole(task.till), whole(task.began), task.status, whole(task.ended), task.fetched and '1' or '0', task.batch,
    task.link, task.tool,
  }, ' '))
end

-- Report a task of which nothing more will be reported.
local function conclude(key, task)
  report(task, '')
  task.batch, task.till = '!' .. batch, now + kept
  write(key, task)
end

if #ARGV == 5 then
  local all, counts = redis.call('HGETALL', KEYS[1]), {}
  for at = 1, #all, 2 do
    local task = read(all[at + 1])
    if task and task.batch == '!' .. batch then
      report(task, '')
    elseif task and task.till <= now and task.began > 0 and not is_over(task) then
      conclude(all[at], task)
    elseif not task or task.till <= now then
      redis.call('HDEL', KEYS[1], all[at])
    elseif task.began > 0 and task.ended == 0 and not is_over(task) then
      local name = task.status .. ' ' .. task.tool
      local count = counts[name] or {task.tool, task.status, 0, task.began}
      counts[name] = {task.tool, task.status, count[3] + 1, math.min(count[4], task.began)}
    end
  end
  for _, count in pairs(counts) do answers[#answers + 1] = {count[1], count[2], count[3], whole(count[4])} end
  return {ends, answers}
end

-- Whether one more can be kept. All are read once in a batch; what begins takes the place of what has ended longest ago.
local room, spare = most - redis.call('HLEN', KEYS[1]), nil
local function has_room(begins)
  if room <= 0 and not spare then
    spare = {}
    local all = redis.call('HGETALL', KEYS[1])
    for at = 1, #all, 2 do
      local task = read(all[at + 1])
      if not task or is_over(task) or (task.began == 0 and task.till <= now) then
        room = room + redis.call('HDEL', KEYS[1], all[at])
      elseif task.batch ~= '-' then
        spare[#spare + 1] = {all[at], task.ended}
      end
    end
    table.sort(spare, function(one, other) return one[2] > other[2] end)
  end
  if room <= 0 and begins and #spare > 0 then
    local key = table.remove(spare)[1]
    local task = read(redis.call('HMGET', KEYS[1], key)[1])
    if task and not is_over(task) then report(task, '') end
    room = room + redis.call('HDEL', KEYS[1], key)
  end
  return room > 0
end

local ended_here = {}
for at = 6, #ARGV, 9 do
  local key, instant, status = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2]
  local ended, till = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  local fetched, began, link, tool = ARGV[at + 5] == '1', tonumber(ARGV[at + 6]), ARGV[at + 7], ARGV[at + 8]
  local aside = key .. '!' .. batch
  local held = redis.call('HMGET', KEYS[1], key, aside)
  local task, replaced = read(held[1]), read(held[2])
  if task and began > 0 and task.began ~= 0 and task.began ~= began then
    if not is_over(task) then
      conclude(aside, task)
      room = room - 1
    end
    task, ended_here[key] = nil, nil
  elseif replaced and began > 0 then
    report(replaced, '')
  end
  if not task then
    if held[1] or has_room(began > 0) then
      room = room - (held[1] and 0 or 1)
      task = {till = till, began = 0, status = 'working', ended = 0, fetched = false, batch = '-', link = '-', tool = ''}
    elseif began > 0 then
      report({tool = tool, status = '_OTHER'}, '')
    end
  end
  answers[#answers + 1] = ''
  if task then
    if began > 0 and task.began == 0 then
      task.began, task.link, task.tool, task.till = began, link, tool, till
    end
    if status ~= '-' and task.ended == 0 then
      task.status = status
      if FINAL[status] then task.ended = ended > 0 and math.min(ended, instant) or instant end
    end
    task.fetched = task.fetched or fetched
    if task.began > 0 and task.ended > 0 and (task.batch == '-' or task.batch == batch) then
      task.batch = batch
      if not ended_here[key] then report(task, whole(math.max(task.ended - task.began, 0))) end
      ended_here[key] = true
    end
    if is_over(task) then task.till = math.min(task.till, instant + kept) end
    write(key, task)
    if task.link ~= '-' then answers[#answers] = task.link end
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return {ends, answers}
