-- Writes a part of a space that is being carried over, if it is still for this run to do.
--
-- KEYS  meta, then those that the commands concern
-- ARGV  the mark of this run, then of each command: its name, the place of its key, the number of its arguments, and
--       these

if redis.call('HGET', KEYS[1], 'erasing') ~= ARGV[1] then
  return redis.error_reply('TGTAKEN another run carries this space over, or somebody has erased it')
end
local at = 2
while at <= #ARGV do
  local last = at + 2 + tonumber(ARGV[at + 2])
  redis.call(ARGV[at], KEYS[tonumber(ARGV[at + 1])], unpack(ARGV, at + 3, last))
  at = last + 1
end
