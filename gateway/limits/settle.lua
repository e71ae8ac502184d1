-- Replace a reservation's charges by what was used, free its slots and append its row: once.
-- KEYS  reservation, live, meta, committed, stream, rule...
-- ARGV  id, numbers, row ('' = void: no row), worker, seq; the numbers are doubles: epoch of the admission (0: admitted
--       without us), admitted_us, again (1: an earlier try may have arrived), then per rule: kind (1 rate, 2 quota,
--       3 lease), window_ms, actual
-- ->    {code, now, overruns, epoch, committed, entry}   ids of the last entry in SQL (or nothing of use) and of this
--       row's, 0-0 = none; code 1 settled; 2 there was no reservation: row kept, and charged when the data was lost
--       since the admission; 0 nothing to do
-- A poisoned rule is skipped: the row matters more.
local id, n, row = ARGV[1], #KEYS - 5, ARGV[3]
local given = numbers(ARGV[2], 3 + 3 * n)
local record = try('GETRANGE', KEYS[1], '0', fmt('%d', 31 + 16 * n))  -- all of the numbers, nothing of the blob
local committed, entry = try('GET', KEYS[4]), '0-0'
local epoch = num(call('HGET', KEYS[3], 'epoch'), 0)
local code, overruns = 1, 0
local counted, held = true, nil

if record == '' then record = false end
if record and record ~= GONE then
  if type(record) == 'string' and #record == 32 + 16 * n then held = numbers(record, 2 + 2 * n, 17) end
  if not held or held[2] ~= n then  -- not what admit.lua writes for these rules
    call('DEL', KEYS[1])
    record = false
  end
end

if record == GONE then
  code = 0
elseif not record then
  counted = false
  if row == '' then
    code = 0
    call('SET', KEYS[1], GONE, 'PX', TOMBSTONE_MS)
  elseif epoch ~= given[1] or epoch == 0 then
    code = 2
  elseif given[3] == 1 then
    code = 0
  else
    code, n = 2, 0
    for i = 6, #KEYS do
      if given[3 * (i - 5) + 1] == LEASE then try('ZREM', KEYS[i], id) end
    end
  end
end
if code > 0 and row ~= '' then
  entry = call('XADD', KEYS[5], '*', 'w', ARGV[4], 'n', ARGV[5], 'r', row)
  if epoch == 0 then
    epoch = now
    call('HSET', KEYS[3], 'epoch', fmt('%d', epoch))
  end
end
if code > 0 and counted then
  call('DEL', KEYS[1])
elseif code > 0 and n > 0 then
  call('SET', KEYS[1], GONE, 'PX', TOMBSTONE_MS)
end
if code > 0 then call('ZREM', KEYS[2], id) end

-- One rule's amount in place of what was reserved. A refund goes to the sub-window of the admission, and nowhere when
-- that has left; an overrun to the current one; what was never counted to the instant of its admission.
local function correct(key, kind, window, actual, at, cost)
  local more = actual - cost
  if kind == QUOTA then
    local used = num(call('GET', key), nil)
    local left_ms = counted and window or ceil((given[2] + window * 1000 - now) / 1000)
    if left_ms <= 0 then return end
    if used then
      call('SET', key, fmt('%d', max(0, min(used + more, MAX))), 'KEEPTTL')
    elseif more > 0 and not poisoned then
      call('SET', key, fmt('%d', more), 'PX', fmt('%d', left_ms))
    end
  elseif more < 0 then
    local head = call('GETRANGE', key, '0', '23')
    if #head ~= HEAD_BYTES then return end
    local s, last, c = read('<ddd', head)
    if not whole(s, last, c) or s + more < 0 then return end
    if at == last then
      if c + more >= 0 then call('SETRANGE', key, '0', pack('<ddd', s + more, last, c + more)) end
    elseif at < last and at >= last - SUBWINDOWS then
      local from, to = place(at)
      local bytes = call('GETRANGE', key, from, to)
      local was = #bytes == 8 and read('<d', bytes)
      if was and whole(was, last, 0) and was + more >= 0 then
        call('SETRANGE', key, '0', pack('<d', s + more))
        call('SETRANGE', key, from, pack('<d', was + more))
      end
    end
  else
    local r = rate(key, window)
    local admitted = counted and r.k or min(floor(given[2] / r.width), r.k)
    if not poisoned and admitted >= r.k - SUBWINDOWS then charge(key, window, r, admitted, more) end
  end
end

for i = 1, n do
  local key, kind, actual = KEYS[5 + i], given[3 * i + 1], given[3 * i + 3]
  if kind == LEASE then
    try('ZREM', key, id)
  elseif code > 0 then
    local cost = counted and held[2 * i + 2] or 0
    if counted and actual > cost then overruns = overruns + 1 end
    if not counted or actual ~= cost then
      poisoned = false
      pcall(correct, key, kind, given[3 * i + 2], actual, counted and held[2 * i + 1], cost)
    end
  end
end
if type(committed) ~= 'string' then committed = '0-0' end
return {code, now, overruns, epoch, committed, entry}
