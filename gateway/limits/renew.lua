-- Prolong live reservations and their slots, and note how many output tokens each has made so far.
-- A lease that was lost is taken again, even above the limit: its request is running.
-- KEYS  live, then per reservation: reservation, slot...
-- ARGV  deadline_us, number of reservations, then per reservation: id, lease_ms, output_tokens, number of slots
-- ->    now, or -1 past the deadline: a late renewal could bring back what was settled meanwhile
if now > tonumber(ARGV[1]) then return -1 end
local key = 2
for i = 1, tonumber(ARGV[2]) do
  local arg = 2 + (i - 1) * 4
  local id, expires, slots = ARGV[arg + 1], fmt('%d', -(now + tonumber(ARGV[arg + 2]) * 1000)), tonumber(ARGV[arg + 4])
  if call('STRLEN', KEYS[key]) > 16 then
    call('SETRANGE', KEYS[key], 0, fmt('%016d', tonumber(ARGV[arg + 3])))
    call('PEXPIRE', KEYS[key], fmt('%d', RECORD_TTL_MS))
    call('ZADD', KEYS[1], expires, id)
  end
  for slot = key + 1, key + slots do
    try('ZADD', KEYS[slot], expires, id)
    try('PEXPIRE', KEYS[slot], fmt('%d', RECORD_TTL_MS))
  end
  key = key + slots + 1
end
call('PEXPIRE', KEYS[1], fmt('%d', RECORD_TTL_MS))
return now
