-- Ends an erasure whose steps are all done. What was erased is kept until the next one begins, for all who took part.
--
-- KEYS  meta
-- ARGV  the epoch that names it, the life of the server on which the steps were done, PUBLISH, channel
-- Reply documents, cells, commits, conflicts and clients that were erased, or nothing if no such erasure is known, or
--       the server's life if that is another

local meta = meta_of(KEYS[1])
local names = { 'erased_docs', 'erased_cells', 'erased_commits', 'erased_conflicts', 'erased_clients' }
if meta.erasing and string.sub(meta.erasing, 1, 8) == ARGV[1] then
  local life = string.match(replication, 'master_replid:(%w+)')
  if life ~= ARGV[2] then
    return { life }
  end
  redis.call('HDEL', KEYS[1], 'erasing', 'mark')
  if #meta.erasing == 16 then
    -- Of the whole space.
    redis.call('HSET', KEYS[1], 'docs', '0', 'bytes', '0')
  end
  redis.call('HSET', KEYS[1], 'erased', ARGV[1])
  redis.call(ARGV[3], ARGV[4], meta.epoch)
elseif redis.call('HGET', KEYS[1], 'erased') ~= ARGV[1] then
  return {}
end
local reply = redis.call('HMGET', KEYS[1], unpack(names))
for i = 1, #names do
  reply[i] = reply[i] or '0'
end
return reply
