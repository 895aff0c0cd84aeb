-- The newest entries of the conflict log.
--
-- KEYS  meta, conflicts
-- ARGV  most entries
-- Reply the records, newest first

if meta_of(KEYS[1]).erasing then
  return redis.error_reply('TGERASING the space is being erased')
end
local reply = {}
for i, entry in ipairs(redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', ARGV[1])) do
  reply[i] = entry[2][2]
end
return reply
