-- What admission and settlement share. `now` (server clock, us UTC) is set by the prologue: see scripts.py.
-- The maths is that of reference.py. A rate is a hash: `s` the sum of its charges, `k` the last sub-window charged, and
-- one field per sub-window, named by its number. A lease set has ids scored by minus their expiry: the newest comes
-- first, where a small sorted set, which Redis keeps as a list, is cheap to insert into. Numbers leave Lua only through %d: `..` and tostring use %.14g, which
-- corrupts instants and large amounts.
local MAX, SUBWINDOWS = 9007199254740992, 60
local RATE_GRACE_MS, RECORD_TTL_MS, TOMBSTONE_MS = 60000, 86400000, 3600000
local TIDY_S = 8            -- expired leases are dropped, and long TTLs renewed, in one second out of so many
local GONE = '-'            -- in place of a reservation: voided, or charged without one
local SLOT_RETRY_US = 1000000
local floor, fmt, max, min = math.floor, string.format, math.max, math.min
local call, try, tonumber = redis.call, redis.pcall, tonumber
local poisoned = false

local function int(x) return fmt('%d', x) end

-- a stored amount; anything that we cannot have written marks the rule as poisoned
local function num(value, absent)
  if not value then return absent end
  local x = tonumber(value)
  if not x or not (x >= 0 and x <= MAX) or x % 1 ~= 0 then
    poisoned = true
    return absent
  end
  return x
end

local function up_ms(us) return floor((us + 999) / 1000) end

local function width_of(window_ms) return floor((window_ms * 1000 + SUBWINDOWS - 1) / SUBWINDOWS) end

-- A rate as it stands now: {s, k, field = k as text, c = charge of k, last, gone = fields that left}
local function rate(key, width)
  local k = floor(now / width)
  local field = int(k)
  local read = call('HMGET', key, 's', 'k', field)
  local s, last, c, gone = num(read[1], 0), num(read[2], -1), num(read[3], 0), nil
  if last > k then
    k, field = last, int(last)
    c = num(call('HGET', key, field), 0)
  elseif last >= 0 and last < k then
    local names = {}
    for at = last - SUBWINDOWS, min(k - SUBWINDOWS - 1, last) do names[#names + 1] = int(at) end
    local left = call('HMGET', key, unpack(names))
    gone = {}
    for i = 1, #names do
      if left[i] then
        s = s - num(left[i], 0)
        gone[#gone + 1] = names[i]
      end
    end
    if s < 0 then poisoned = true end
  end
  return {s = s, k = k, field = field, c = c, last = last, gone = gone, width = width,
          kind = 'r', limit = 0, window = 0, cost = 0}
end

-- add `amount` to sub-window `at` of a rate that rate() read, and keep what is left of it
local function charge(key, window_ms, r, at, amount)
  amount = min(amount, MAX - r.s)
  r.s = r.s + amount
  if at == r.k then
    call('HSET', key, 's', int(r.s), 'k', r.field, r.field, int(r.c + amount))
  else
    call('HSET', key, 's', int(r.s), 'k', r.field)
    call('HINCRBY', key, int(at), int(amount))
  end
  if r.last ~= r.k then
    if r.gone and #r.gone > 0 then call('HDEL', key, unpack(r.gone)) end
    call('PEXPIRE', key, int(2 * window_ms + RATE_GRACE_MS))
  end
end

-- after how many us no more than `room` of `used` is left in a rate; each number is exact, their sum might not be
local function rate_wait(key, width, k, used, room)
  local names = {}
  for at = k - SUBWINDOWS, k do names[#names + 1] = int(at) end
  local held = call('HMGET', key, unpack(names))
  for i = 1, #names do
    if held[i] then
      used = used - num(held[i], 0)
      if used <= room then return (k - SUBWINDOWS + i - 1 + SUBWINDOWS + 1) * width - now end
    end
  end
  return (k + SUBWINDOWS + 1) * width - now
end
