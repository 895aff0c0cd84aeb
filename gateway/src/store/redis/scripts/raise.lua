-- Raises a space's tombstone floor, to the head at most, and forgets the epochs below.
--
-- KEYS  meta
-- ARGV  floor, most entries of a lineage
-- Reply the floor that holds now

local meta = meta_of(KEYS[1])
local to = math.min(tonumber(ARGV[1]), meta.head)
if meta.exists and not meta.erasing and to > meta.floor then
  meta.floor = to
  redis.call('HSET', KEYS[1], 'floor', decimal(to), 'lineage', without_forgotten(meta.lineage, to, tonumber(ARGV[2])))
end
return decimal(meta.floor)
