-- Deletes the records of clients that last wrote before a time, with their results, and keeps in mind how new the
-- newest of them was.
--
-- KEYS  meta, clients, results
-- ARGV  time, results kept a client, then writers
-- Reply how many were deleted

local meta = meta_of(KEYS[1])
if not meta.exists or meta.erasing then
  return 0
end
local before, count = tonumber(ARGV[1]), 0
for i = 3, #ARGV do
  local record = redis.call('HGET', KEYS[2], ARGV[i])
  local when = record and unpack_at(record, 17)
  if when and when < before then
    local results = {}
    for n = 1, tonumber(ARGV[2]) do
      results[n] = ARGV[i] .. string.char(n - 1)
    end
    redis.call('HDEL', KEYS[3], unpack(results))
    redis.call('HDEL', KEYS[2], ARGV[i])
    meta.forgotten, count = math.max(meta.forgotten or 0, when), count + 1
  end
end
if count > 0 then
  redis.call('HSET', KEYS[1], 'forgotten', decimal(meta.forgotten))
end
return count
