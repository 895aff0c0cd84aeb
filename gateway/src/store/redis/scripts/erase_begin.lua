-- Begins an erasure, or finds the one under way: that has to come to its end first. From here on the space is closed to
-- all but `positions`: every position resets, seqs go on.
--
-- A space that is being carried over can be erased as a whole; whoever carries it over finds it taken away. Where meta is
-- gone nobody knows how many documents there are, so they are looked for.
--
-- KEYS  meta, idx, log, then the others that a space has whatever is in it
-- ARGV  user, or nothing for the whole space; name of the epoch; time; what marks a space that is carried over; whether
--       documents have been found; PUBLISH, channel
-- Reply nothing without such a space, else the erasure under way, the lineage, and the server's life

local meta = meta_of(KEYS[1])
local carried = meta.erasing and string.sub(meta.erasing, 1, #ARGV[4]) == ARGV[4]
if carried and ARGV[1] ~= '' then
  return redis.error_reply('TGCARRIED the space is being carried over: end that first, or erase all of it')
end
if not meta.exists and ARGV[5] == '' and redis.call('EXISTS', unpack(KEYS, 2)) == 0 then
  return {}
end
local life = string.match(replication, 'master_replid:(%w+)')
if carried or not meta.erasing then
  if carried or meta.lineage == '' then
    meta.head = math.max(meta.head, highest(KEYS[2], KEYS[3]))
    redis.call('HSET', KEYS[1], 'head', decimal(meta.head), 'idx', '-1')
    redis.call('HDEL', KEYS[1], 'origin')
  end
  meta.erasing = ARGV[2] .. pack(tonumber(ARGV[3])) .. ARGV[1]
  meta.lineage = ARGV[2] .. pack(meta.head) .. struct.pack('>I4', #life) .. life
  redis.call('HSET', KEYS[1], 'erasing', meta.erasing, 'epoch', ARGV[2], 'life', life, 'lineage', meta.lineage,
    'floor', decimal(meta.head), 'log_first', decimal(meta.head + 1), 'log_bytes', '0')
  redis.call('HDEL', KEYS[1], 'erased', 'erased_docs', 'erased_cells', 'erased_commits', 'erased_conflicts', 'erased_clients')
  redis.call(ARGV[6], ARGV[7], ARGV[2])
end
return { meta.erasing, meta.lineage, life }
