-- Commits after a seq, with the state of the space at that moment: its reader judges by it whether the seq is one of
-- this history.
--
-- KEYS  meta, log, idx, clients
-- ARGV  seq, most commits, bytes after which none is begun, writer or nothing
-- Reply state, the writer's record or nothing, then ids and payloads in turn.

local meta = meta_of(KEYS[1])
if meta.erasing then
  return redis.error_reply('TGERASING the space is being erased')
end
if not meta.exists then
  meta.head = highest(KEYS[3], KEYS[2])
  meta.log_first = meta.head + 1
end
local after, limit, bytes = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local record = ARGV[4] ~= '' and redis.call('HGET', KEYS[4], ARGV[4]) or ''
local reply = { state_of(meta), record }
-- A few at a time, as long as they have room were they all as large as the largest so far: not much is read that is not
-- sent.
local FEW = 4
local spent, count, largest = 0, 0, 0
while after + 1 >= meta.log_first and count < limit and (count == 0 or spent < bytes) do
  local few = count > 0 and FEW * largest <= bytes - spent and FEW or 1
  local some = redis.call('XRANGE', KEYS[2], decimal(after + 1) .. '-0', '+', 'COUNT', math.min(few, limit - count))
  if #some == 0 then
    break
  end
  for _, entry in ipairs(some) do
    if count > 0 and spent >= bytes then
      break
    end
    after = tonumber(string.match(entry[1], '^(%d+)'))
    spent, count, largest = spent + #entry[2][2], count + 1, math.max(largest, #entry[2][2])
    reply[#reply + 1] = decimal(after)
    reply[#reply + 1] = entry[2][2]
  end
end
return reply
