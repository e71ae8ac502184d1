-- Guard in front of settle.lua, for the sweeper: settle only a reservation that nobody renewed in time.
-- KEYS and ARGV are those of settle.lua.
local expires = call('ZSCORE', KEYS[2], ARGV[1])
if expires and -tonumber(expires) > now then return {0, now, 0, 0, '0-0', '0-0'} end
if call('STRLEN', KEYS[1]) <= 16 then
  call('ZREM', KEYS[2], ARGV[1])
  return {0, now, 0, 0, '0-0', '0-0'}
end
