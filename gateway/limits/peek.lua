-- What is left of some rules now; nothing is written.
-- KEYS  rule...
-- ARGV  lease_ms, number of rules, then per rule: kind (r q l), limit, window_ms
-- ->    "1 now 0 0 (remaining reset_ms)..."   as admit.lua answers when it has charged
local n = tonumber(ARGV[2])
local out = fmt('1 %d 0 0', now)
for i = 1, n do
  local key, arg = KEYS[i], 2 + (i - 1) * 3
  local kind, limit, window = ARGV[arg + 1], tonumber(ARGV[arg + 2]), tonumber(ARGV[arg + 3])
  local used, reset = 0, 0
  if kind == 'r' then
    local r = rate(key, width_of(window))
    used = r.s
    reset = up_ms((max(r.last, 0) + SUBWINDOWS + 1) * r.width - now)
  elseif kind == 'q' then
    used, reset = num(call('GET', key), 0), window
  else
    used, reset = call('ZCARD', key) - call('ZCOUNT', key, int(-now), '+inf'), tonumber(ARGV[1])
  end
  out = out .. fmt(' %d %d', max(0, limit - used), used > 0 and reset or 0)
end
if poisoned then return redis.error_reply('SYPOISON a counter holds what no script wrote') end
return out
