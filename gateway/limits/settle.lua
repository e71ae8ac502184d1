-- Replace a reservation's charges by what was used, free its slots and append its row: once.
-- KEYS  reservation, live, meta, committed, stream, rule...
-- ARGV  id, epoch of the admission (0: admitted without us), admitted_us, number of rules, row ('' = void: no row),
--       worker, seq, again (1: an earlier try may have arrived), then per rule: kind (r q l), window_ms, actual
-- ->    "code now overruns epoch committed entry"   ids of the last entry in SQL and of this row's, 0-0 = none; code 1 settled; 2 there was no reservation: row kept, and charged when the data was
--       lost since the admission; 0 nothing to do
-- A poisoned rule is skipped: the row matters more.
local id, n, row, again = ARGV[1], tonumber(ARGV[4]), ARGV[5], ARGV[8] == '1'
local record = try('GETRANGE', KEYS[1], 0, 36 + 40 * n)  -- all of the numbers, little of the blob
local committed, entry = try('GET', KEYS[4]), '0-0'
local epoch = num(call('HGET', KEYS[3], 'epoch'), 0)
local code, overruns = 1, 0
local counted, at, cost = true, {}, {}

local numbers = {}
if record == '' then record = false end
if type(record) == 'string' and record ~= GONE then
  for x in string.gmatch(string.sub(record, 17, (string.find(record, ';', 17, true) or 17) - 1), '%d+') do
    numbers[#numbers + 1] = tonumber(x)
  end
end
if record and record ~= GONE and #numbers ~= 1 + 2 * n then  -- not what admit.lua writes for these rules
  call('DEL', KEYS[1])
  record = false
end

if record == GONE then
  code = 0
elseif record then
  for i = 1, n do at[i], cost[i] = numbers[2 * i], numbers[2 * i + 1] end
else
  counted = false
  if row == '' then
    code = 0
    call('SET', KEYS[1], GONE, 'PX', int(TOMBSTONE_MS))
  elseif epoch ~= tonumber(ARGV[2]) or ARGV[2] == '0' then
    code = 2
  elseif again then
    code = 0
  else
    code, n = 2, 0
    for i = 6, #KEYS do
      if ARGV[8 + (i - 6) * 3 + 1] == 'l' then try('ZREM', KEYS[i], id) end
    end
  end
end
if code > 0 and row ~= '' then
  entry = call('XADD', KEYS[5], '*', 'w', ARGV[6], 'n', ARGV[7], 'r', row)
  if epoch == 0 then
    epoch = now
    call('HSET', KEYS[3], 'epoch', int(epoch))
  end
end
if code > 0 and counted then
  call('DEL', KEYS[1])
elseif code > 0 and n > 0 then
  call('SET', KEYS[1], GONE, 'PX', int(TOMBSTONE_MS))
end
if code > 0 then call('ZREM', KEYS[2], id) end

local function settle_rate(key, window, actual, i)
  local width = width_of(window)
  if not counted then
    local r = rate(key, width)
    local admitted = min(floor(tonumber(ARGV[3]) / width), r.k)
    if not poisoned and admitted >= r.k - SUBWINDOWS then charge(key, window, r, admitted, actual) end
    return
  end
  local more = actual - cost[i]
  if more > 0 then
    local r = rate(key, width)
    if not poisoned then charge(key, window, r, r.k, more) end
  elseif more < 0 then
    local held = call('HMGET', key, 's', int(at[i]))
    local s, c = num(held[1], nil), num(held[2], nil)
    if s and c and s + more >= 0 and c + more >= 0 then
      call('HSET', key, 's', int(s + more), int(at[i]), int(c + more))
    end
  end
end

local function settle_quota(key, window, actual, i)
  local used = num(call('GET', key), nil)
  if counted then
    local more = actual - cost[i]
    if used and more ~= 0 then
      call('SET', key, int(max(0, min(used + more, MAX))), 'KEEPTTL')
    elseif more > 0 and not poisoned then
      call('SET', key, int(more), 'PX', int(window))
    end
    return
  end
  local left_ms = up_ms(tonumber(ARGV[3]) + window * 1000 - now)
  if left_ms > 0 and not poisoned then
    if used then
      call('SET', key, int(min(used + actual, MAX)), 'KEEPTTL')
    else
      call('SET', key, int(actual), 'PX', int(left_ms))
    end
  end
end

for i = 1, n do
  local key, arg = KEYS[5 + i], 8 + (i - 1) * 3
  local kind, window, actual = ARGV[arg + 1], tonumber(ARGV[arg + 2]), tonumber(ARGV[arg + 3])
  if kind == 'l' then
    try('ZREM', key, id)
  elseif code > 0 then
    poisoned = false
    if counted and actual > cost[i] then overruns = overruns + 1 end
    pcall(kind == 'r' and settle_rate or settle_quota, key, window, actual, i)
  end
end
if type(committed) ~= 'string' or not string.find(committed, '^%d+%-%d+$') then committed = '0-0' end
return fmt('%d %d %d %d ', code, now, overruns, epoch) .. committed .. ' ' .. entry
