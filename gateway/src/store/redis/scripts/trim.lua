-- Deletes the oldest entries of a space's log, up to and with a seq, or of its conflict log, older than a time.
--
-- KEYS  meta, the stream
-- ARGV  'log' and a seq, or 'conflicts' and a time; most entries
-- Reply how many were deleted

local meta = meta_of(KEYS[1])
if not meta.exists or meta.erasing then
  return 0
end
local is_log, to = ARGV[1] == 'log', tonumber(ARGV[2])
local last, bytes, count = nil, 0, 0
for _, entry in ipairs(redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', ARGV[3])) do
  local n = tonumber(string.match(entry[1], '^(%d+)'))
  if is_log and n > to or not is_log and unpack_at(entry[2][2], 17) >= to then
    break
  end
  last, bytes, count = n, bytes + #entry[2][2], count + 1
end
if last then
  redis.call('XTRIM', KEYS[2], 'MINID', decimal(last + 1) .. '-0')
  if is_log then
    redis.call('HSET', KEYS[1], 'log_first', decimal(last + 1), 'log_bytes', decimal(math.max(meta.log_bytes - bytes, 0)))
  else
    redis.call('HSET', KEYS[1], 'cf_bytes', decimal(math.max(meta.cf_bytes - bytes, 0)))
  end
end
return count
