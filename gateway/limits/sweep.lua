-- Guard in front of settle.lua, for the sweeper: settle only a reservation that nobody renewed in time, or whose holder is
-- known to be dead.
-- KEYS and ARGV are those of settle.lua; `again` 2: the holder is dead.
local expires = read('<d', ARGV[2], 17) ~= 2 and call('ZSCORE', KEYS[2], ARGV[1])
if expires and -tonumber(expires) > now then return {0, now, 0, 0, '0-0', '0-0'} end
if call('STRLEN', KEYS[1]) <= 16 then
  call('ZREM', KEYS[2], ARGV[1])
  return {0, now, 0, 0, '0-0', '0-0'}
end
