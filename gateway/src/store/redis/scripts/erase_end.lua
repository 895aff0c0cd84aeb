-- Ends an erasure whose steps are all done.
--
-- KEYS  meta
-- ARGV  the epoch that names it, PUBLISH, channel
-- Reply documents, cells, commits, conflicts and clients that were erased, or nothing if it was over

local meta = meta_of(KEYS[1])
if not meta.erasing or string.sub(meta.erasing, 1, 8) ~= ARGV[1] then
  return {}
end
local names = { 'erased_docs', 'erased_cells', 'erased_commits', 'erased_conflicts', 'erased_clients' }
local reply = redis.call('HMGET', KEYS[1], unpack(names))
for i = 1, #names do
  reply[i] = reply[i] or '0'
end
redis.call('HDEL', KEYS[1], 'erasing', 'mark', unpack(names))
redis.call(ARGV[2], ARGV[3], meta.epoch)
return reply
