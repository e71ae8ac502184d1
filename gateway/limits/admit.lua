-- Charge every rule of one request, or none.
-- KEYS  reservation, live, meta, rule...
-- ARGV  id, numbers, blob; the numbers are doubles: deadline_us, lease_ms, then per rule: kind (1 rate, 2 quota,
--       3 lease), limit, window_ms, cost
-- ->    {1, now, epoch, config, (remaining, reset_ms)...}                         charged
--       {0, now, config, index, retry_after_ms, (remaining, reset_ms)...}         refused, nothing written
--       {-1, now} past its deadline   {-2, now} this id was voided or used        nothing written
-- The reservation is a string: progress in 16 digits, then doubles: now, number of rules, (sub-window, cost)...; then
-- `blob`, which is for the sweeper.
local id, n = ARGV[1], #KEYS - 3
local given = numbers(ARGV[2], 2 + 4 * n)
if now > given[1] then return {-1, now} end
local lease_us = given[2] * 1000
local meta = call('HMGET', KEYS[3], 'epoch', 'config')
local epoch, config = num(meta[1], 0), num(meta[2], 0)
local expired = fmt('%d', -now)
local known, refused, retry_us = {}, 0, 0

for i = 1, n do
  local key, kind, limit, window = KEYS[3 + i], given[4 * i - 1], given[4 * i], given[4 * i + 1]
  local r
  if kind == RATE then
    r = rate(key, window)
  elseif kind == QUOTA then
    r = {s = num(call('GET', key), 0)}
  else
    r = {s = call('ZCARD', key)}
    if r.s > 0 then r.s = r.s - call('ZCOUNT', key, expired, '+inf') end
  end
  known[i] = r
  local room = limit - given[4 * i + 2]
  if r.s > room then
    local wait
    if kind == RATE then
      wait = (r.k + SUBWINDOWS + 1) * r.width - now
      local ring, used = r.ring or r.last >= 0 and ring_of(key), r.s
      for at = r.k - SUBWINDOWS, ring and r.k - 1 or 0 do  -- each number is exact, their sum might not be
        used = used - ring[at % RING + 1]
        if used <= room then
          wait = (at + SUBWINDOWS + 1) * r.width - now
          break
        end
      end
    elseif kind == QUOTA then
      wait = window * 1000
    else
      local nth = call('ZREVRANGEBYSCORE', key, '(' .. expired, '-inf', 'WITHSCORES', 'LIMIT', fmt('%d', r.s - room - 1), 1)
      wait = nth[2] and min(-tonumber(nth[2]) - now, SLOT_RETRY_US) or SLOT_RETRY_US
    end
    if refused == 0 then refused = i end
    retry_us = max(retry_us, wait)
  end
end
if poisoned then return redis.error_reply('SYPOISON a counter holds what no script wrote') end

local out, last = nil, 5
if refused > 0 then
  out = {0, now, config, refused - 1, ceil(retry_us / 1000)}
else
  local record = {now, n, 0, 0, 0, 0, 0, 0, 0, 0}  -- a table that has room need not grow
  for i = 1, n do
    record[2 * i + 1], record[2 * i + 2] = known[i].k or 0, given[4 * i + 2]
  end
  local head = pack('<' .. string.rep('d', 2 + 2 * n), unpack(record, 1, 2 + 2 * n))
  if not call('SET', KEYS[1], '0000000000000000' .. head .. ARGV[3], 'NX', 'PX', RECORD_TTL_MS) then return {-2, now} end
  local expires = fmt('%d', -(now + lease_us))
  local live = try('ZADD', KEYS[2], expires, id)
  if type(live) == 'table' then
    call('DEL', KEYS[1])
    return live
  end
  local tidy = floor(now / 1000000) % TIDY_S == 0
  if tidy then call('PEXPIRE', KEYS[2], RECORD_TTL_MS) end
  if epoch == 0 then
    epoch = now
    call('HSET', KEYS[3], 'epoch', fmt('%d', epoch))
    call('PEXPIRE', KEYS[2], RECORD_TTL_MS)
  end
  for i = 1, n do
    local r, key, kind, cost = known[i], KEYS[3 + i], given[4 * i - 1], given[4 * i + 2]
    if kind == RATE then
      charge(key, given[4 * i + 1], r, r.k, cost)
      r.last = r.k
    elseif kind == QUOTA then
      r.s = r.s + cost
      call('SET', key, fmt('%d', r.s), 'PX', fmt('%d', given[4 * i + 1]))
    else
      if tidy then call('ZREMRANGEBYSCORE', key, expired, '+inf') end
      call('ZADD', key, expires, id)
      if tidy or r.s == 0 then call('PEXPIRE', key, RECORD_TTL_MS) end
      r.s = r.s + 1
    end
  end
  out, last = {1, now, epoch, config, nil, nil, nil, nil, nil, nil, nil, nil}, 4
end
for i = 1, n do
  local r, kind, reset = known[i], given[4 * i - 1], 0
  if r.s > 0 then
    if kind == RATE then
      reset = ceil(((r.last + SUBWINDOWS + 1) * r.width - now) / 1000)
    elseif kind == QUOTA then
      reset = given[4 * i + 1]
    else
      reset = given[2]
    end
  end
  out[last + 1], out[last + 2] = max(0, given[4 * i] - r.s), reset
  last = last + 2
end
return out
