-- What admission and settlement share. `now` (server clock, us UTC) is set by the prologue: see scripts.py.
-- The maths is that of reference.py. A rate is a string of 64 doubles: the sum of its charges, the last sub-window
-- charged and that one's charge; then a ring of 61, the charges of the sub-windows before it by number modulo 61. So a
-- rate is read and written in one command each, while its sub-window lasts only 24 bytes of it. A lease set has ids
-- scored by minus their expiry: the newest comes first, where a small sorted set, which Redis keeps as a list, is cheap
-- to insert into. Numbers of a call come packed as doubles too: each argument and each tonumber costs as much as a
-- small command. Into text they are made only by %d: `..` and tostring use %.14g, which corrupts instants and large
-- amounts.
-- Names in capitals are put in as numbers when a script is composed, and helpers are few: each call of a script makes its
-- functions anew, and each local that one of them captures costs again.
local MAX = 9007199254740992
local SUBWINDOWS = 60
local RING = 61
local HEAD_BYTES = 24
local RING_BYTES = 488
local RATE = 1
local QUOTA = 2
local LEASE = 3
local RATE_GRACE_MS = 60000
local RECORD_TTL_MS = '86400000'    -- in text: a number becomes text slowly
local TOMBSTONE_MS = '3600000'
local TIDY_S = 8            -- expired leases are dropped, and long TTLs renewed, in one second out of so many
local GONE = '-'            -- in place of a reservation: voided, or charged without one
local SLOT_RETRY_US = 1000000
local ceil, max, tonumber, try, pack = math.ceil, math.max, tonumber, redis.pcall, struct.pack
local min, fmt, floor, call, read, poisoned = math.min, string.format, math.floor, redis.call, struct.unpack, false

-- numbers of a rate that we can have written; what is no number, or none that ends, is none
local function whole(s, last, c)
  return s % 1 + last % 1 + c % 1 == 0 and c >= 0 and c <= s and s <= MAX and last >= 0 and last <= MAX
end

-- a stored amount in text; anything that we cannot have written marks the rule as poisoned
local function num(value, absent)
  if not value then return absent end
  local x = tonumber(value)
  if not x or not whole(x, 0, 0) then
    poisoned = true
    return absent
  end
  return x
end

-- the numbers of a packed argument or record
local function numbers(packed, count, from)
  return {read('<' .. string.rep('d', count), packed, from)}
end

-- first and last byte of a sub-window in the ring
local function place(at)
  local from = HEAD_BYTES + 8 * (at % RING)
  return fmt('%d', from), fmt('%d', from + 7)
end

local function ring_of(key)
  local bytes = call('GETRANGE', key, '24', '-1')
  if #bytes ~= RING_BYTES then
    poisoned = true
    return nil
  end
  return numbers(bytes, RING)
end

-- A rate as it stands now: {s, k, c = charge of k, last, ring = of the sub-windows before k, where it had to be read}
local function rate(key, window_ms)
  local width = floor((window_ms * 1000 + SUBWINDOWS - 1) / SUBWINDOWS)
  local k = floor(now / width)
  local head = call('GETRANGE', key, '0', '23')
  if head == '' then return {s = 0, k = k, c = 0, last = -1, width = width} end
  local s, last, c = 0, k, 0
  if #head == HEAD_BYTES then s, last, c = read('<ddd', head) end
  if #head ~= HEAD_BYTES or not whole(s, last, c) then
    poisoned = true
    return {s = 0, k = k, c = 0, last = k, width = width}
  end
  if last >= k then return {s = s, k = last, c = c, last = last, width = width} end
  local ring = ring_of(key)
  if ring then
    ring[last % RING + 1] = c
    for at = last - SUBWINDOWS, min(k - SUBWINDOWS - 1, last) do
      local gone = at % RING + 1
      s, ring[gone] = s - ring[gone], 0
    end
    if not whole(s, last, 0) then poisoned = true end
  end
  return {s = s, k = k, c = 0, last = last, width = width, ring = ring}
end

-- add `more` to sub-window `at` of a rate that rate() read
local function charge(key, window_ms, r, at, more)
  more = min(more, MAX - r.s)
  r.s = r.s + more
  if at == r.k then r.c = r.c + more end
  if r.last == r.k then
    call('SETRANGE', key, '0', pack('<ddd', r.s, r.k, r.c))
    if at ~= r.k then
      local from, to = place(at)
      call('SETRANGE', key, from, pack('<d', read('<d', call('GETRANGE', key, from, to)) + more))
    end
    return
  end
  local ring
  if r.ring or at ~= r.k then
    ring = r.ring or numbers(string.rep('\0', RING_BYTES), RING)
    if at ~= r.k then ring[at % RING + 1] = ring[at % RING + 1] + more end
    ring = pack('<' .. string.rep('d', RING), unpack(ring, 1, RING))
  else
    ring = string.rep('\0', RING_BYTES)
  end
  call('SET', key, pack('<ddd', r.s, r.k, r.c) .. ring, 'PX', fmt('%d', 2 * window_ms + RATE_GRACE_MS))
end
