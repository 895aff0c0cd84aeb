-- Deletes tombstones and dead documents at or below the floor: those of a list that its caller has read before.
--
-- KEYS  meta, idx, dead, then the documents concerned
-- ARGV  number of entries, then of each: itself as it stands in `dead`, the place of its document among the keys, the
--       document's path, the field or nothing
-- Reply how many cells and documents were deleted, and how many entries were taken from `dead`

local meta = meta_of(KEYS[1])
local deleted, docs, taken = 0, 0, 0
if not meta.exists or meta.erasing then
  return { '0', '0' }
end
local at = 1
for _ = 1, tonumber(ARGV[1]) do
  local entry, key, path, field = ARGV[at + 1], KEYS[3 + tonumber(ARGV[at + 2])], ARGV[at + 3], ARGV[at + 4]
  at = at + 4
  local score = redis.call('ZSCORE', KEYS[3], entry)
  local seq = score and tonumber(score)
  -- What died again since is for a later floor.
  if seq and seq <= meta.floor then
    if field ~= '' then
      local cell = redis.call('HGET', key, field)
      if cell and #cell == 16 and unpack_at(cell, 1) <= meta.floor then
        redis.call('HDEL', key, field)
        deleted = deleted + 1
      end
    else
      local header = redis.call('HGET', key, '')
      if header and string.byte(header, 41) == 0 and unpack_at(header, 1) <= meta.floor then
        redis.call('UNLINK', key)
        redis.call('ZREM', KEYS[2], path)
        deleted, docs = deleted + 1, docs + 1
      end
    end
    redis.call('ZREM', KEYS[3], entry)
    taken = taken + 1
  end
end
if docs > 0 then
  redis.call('HINCRBY', KEYS[1], 'idx', -docs)
end
return { decimal(deleted), decimal(taken) }
