-- Charge every rule of one request, or none.
-- KEYS  reservation, live, meta, rule...
-- ARGV  id, deadline_us, lease_ms, number of rules, blob, then per rule: kind (r q l), limit, window_ms, cost
-- ->    "1 now epoch config (remaining reset_ms)..."                         charged
--       "0 now config index retry_after_ms (remaining reset_ms)..."          refused, nothing written
--       "-1 now" past its deadline   "-2 now" this id was voided or used     nothing written
-- The reservation is a string "<progress, 16 digits> <now> (<sub-window> <cost>)...;<blob>"; `blob` is for the sweeper.
local id, lease_us, n = ARGV[1], tonumber(ARGV[3]) * 1000, tonumber(ARGV[4])
if now > tonumber(ARGV[2]) then return '-1 ' .. int(now) end
local meta = call('HMGET', KEYS[3], 'epoch', 'config')
local epoch, config = num(meta[1], 0), num(meta[2], 0)
local expired = int(-now)
local living = '(' .. expired
local read, refused, retry_us = {}, 0, 0

for i = 1, n do
  local key, arg = KEYS[3 + i], 5 + (i - 1) * 4
  local kind, limit, window, cost = ARGV[arg + 1], tonumber(ARGV[arg + 2]), tonumber(ARGV[arg + 3]), tonumber(ARGV[arg + 4])
  local r
  if kind == 'r' then
    r = rate(key, width_of(window))
  elseif kind == 'q' then
    r = {s = num(call('GET', key), 0)}
  else
    r = {s = call('ZCARD', key)}
    if r.s > 0 then r.s = r.s - call('ZCOUNT', key, expired, '+inf') end
  end
  r.kind, r.limit, r.window, r.cost = kind, limit, window, cost
  read[i] = r
  local room = limit - cost
  if r.s > room then
    local wait
    if kind == 'r' then
      wait = rate_wait(key, r.width, r.k, r.s, room)
    elseif kind == 'q' then
      wait = window * 1000
    else
      local nth = call('ZREVRANGEBYSCORE', key, living, '-inf', 'WITHSCORES', 'LIMIT', int(r.s - room - 1), 1)
      wait = nth[2] and min(-tonumber(nth[2]) - now, SLOT_RETRY_US) or SLOT_RETRY_US
    end
    if refused == 0 then refused = i end
    retry_us = max(retry_us, wait)
  end
end
if poisoned then return redis.error_reply('SYPOISON a counter holds what no script wrote') end

local out
if refused > 0 then
  out = fmt('0 %d %d %d %d', now, config, refused - 1, up_ms(retry_us))
else
  local record = fmt('0000000000000000 %d', now)
  for i = 1, n do record = record .. ' ' .. (read[i].field or '0') .. ' ' .. ARGV[5 + i * 4] end
  record = record .. ';' .. ARGV[5]
  if not call('SET', KEYS[1], record, 'NX', 'PX', int(RECORD_TTL_MS)) then
    return '-2 ' .. int(now)
  end
  local expires = int(-(now + lease_us))
  local live = try('ZADD', KEYS[2], expires, id)
  if type(live) == 'table' then
    call('DEL', KEYS[1])
    return live
  end
  local tidy = floor(now / 1000000) % TIDY_S == 0
  if tidy then call('PEXPIRE', KEYS[2], int(RECORD_TTL_MS)) end
  if epoch == 0 then
    epoch = now
    call('HSET', KEYS[3], 'epoch', int(epoch))
    call('PEXPIRE', KEYS[2], int(RECORD_TTL_MS))
  end
  for i = 1, n do
    local r, key = read[i], KEYS[3 + i]
    if r.kind == 'r' then
      charge(key, r.window, r, r.k, r.cost)
      r.last = r.k
    elseif r.kind == 'q' then
      r.s = r.s + r.cost
      call('SET', key, int(r.s), 'PX', int(r.window))
    else
      if tidy then call('ZREMRANGEBYSCORE', key, expired, '+inf') end
      call('ZADD', key, expires, id)
      if tidy or r.s == 0 then call('PEXPIRE', key, int(RECORD_TTL_MS)) end
      r.s = r.s + 1
    end
  end
  out = fmt('1 %d %d %d', now, epoch, config)
end
for i = 1, n do
  local r, reset = read[i], 0
  if r.s > 0 then
    if r.kind == 'r' then
      reset = up_ms((r.last + SUBWINDOWS + 1) * r.width - now)
    elseif r.kind == 'q' then
      reset = r.window
    else
      reset = floor(lease_us / 1000)
    end
  end
  out = out .. fmt(' %d %d', max(0, r.limit - r.s), reset)
end
return out
