-- Begins an erasure, or finds the one under way: that has to come to its end first. From here on the space is closed to
-- all but `positions`: every position resets, seqs go on.
--
-- KEYS  meta
-- ARGV  user, or nothing for the whole space; name of the epoch; time; PUBLISH, channel
-- Reply nothing without such a space, else the erasure under way, the lineage, and the server's life

local meta = meta_of(KEYS[1])
if meta.lineage == '' then
  return {}
end
local life = string.match(replication, 'master_replid:(%w+)')
if not meta.erasing then
  meta.erasing = ARGV[2] .. pack(tonumber(ARGV[3])) .. ARGV[1]
  meta.lineage = ARGV[2] .. pack(meta.head) .. struct.pack('>I4', #life) .. life
  redis.call('HSET', KEYS[1], 'erasing', meta.erasing, 'epoch', ARGV[2], 'life', life, 'lineage', meta.lineage,
    'floor', decimal(meta.head), 'log_first', decimal(meta.head + 1), 'log_bytes', '0')
  redis.call('HDEL', KEYS[1], 'erased', 'erased_docs', 'erased_cells', 'erased_commits', 'erased_conflicts', 'erased_clients')
  redis.call(ARGV[4], ARGV[5], ARGV[2])
end
return { meta.erasing, meta.lineage, life }
