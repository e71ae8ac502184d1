-- What is left of some rules now; nothing is written.
-- KEYS  rule...
-- ARGV  numbers, doubles: lease_ms, then per rule: kind (1 rate, 2 quota, 3 lease), limit, window_ms
-- ->    {1, now, 0, 0, (remaining, reset_ms)...}   as admit.lua answers when it has charged
local n = #KEYS
local given = numbers(ARGV[1], 1 + 3 * n)
local out = {1, now, 0, 0}
for i = 1, n do
  local key, kind, window = KEYS[i], given[3 * i - 1], given[3 * i + 1]
  local used, reset = 0, 0
  if kind == RATE then
    local r = rate(key, window)
    used = r.s
    reset = ceil(((max(r.last, 0) + SUBWINDOWS + 1) * r.width - now) / 1000)
  elseif kind == QUOTA then
    used, reset = num(call('GET', key), 0), window
  else
    used, reset = call('ZCARD', key) - call('ZCOUNT', key, fmt('%d', -now), '+inf'), given[1]
  end
  out[2 * i + 3], out[2 * i + 4] = max(0, given[3 * i] - used), used > 0 and reset or 0
end
if poisoned then return redis.error_reply('SYPOISON a counter holds what no script wrote') end
return out
