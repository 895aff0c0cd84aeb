-- Documents with their cells, as of one position.
--
-- KEYS  meta, log, idx, then the documents.
-- ARGV  the documents' paths.
-- Reply state, then each document's fields and values in turn.

local meta = meta_of(KEYS[1])
if meta.erasing then
  return redis.error_reply('TGERASING the space is being erased')
end
local size = redis.call('ZCARD', KEYS[3])
if not meta.exists then
  meta.head = highest(KEYS[3], KEYS[2])
elseif size ~= meta.idx then
  return partial('the index holds ' .. size .. ' documents of ' .. decimal(meta.idx))
end
local reply = { state_of(meta) }
for i, path in ipairs(ARGV) do
  local doc = redis.call('HGETALL', KEYS[3 + i])
  local score = redis.call('ZSCORE', KEYS[3], path)
  local header = #doc > 0 and redis.call('HGET', KEYS[3 + i], '')
  if (header and unpack_at(header, 1)) ~= (score and tonumber(score)) then
    return torn(path)
  end
  reply[i + 1] = doc
end
return reply
