-- Closes a space for somebody who carries it over, unless there is one. What another run has left of one is taken over,
-- wherever it came from: nobody can have read it. So is what an erasure has left, as long as nobody has written since:
-- its history goes, and with it every position.
--
-- KEYS  meta, idx, log, results, users, then the others that a space has whatever is in it
-- ARGV  what every such mark begins with, the mark of this run, origin, head, 'look' or 'take'
-- Reply 'nothing', 'part', 'all' of it from the same origin, or 'other'

local meta = meta_of(KEYS[1])
local is_part = meta.erasing and string.sub(meta.erasing, 1, #ARGV[1]) == ARGV[1]
local found = 'nothing'
if is_part then
  found = 'part'
elseif meta.erasing then
  return 'other'
elseif meta.exists then
  if redis.call('HGET', KEYS[1], 'origin') == ARGV[3] then
    return 'all'
  elseif not redis.call('HGET', KEYS[1], 'erased') or redis.call('EXISTS', KEYS[2], KEYS[3], KEYS[4], KEYS[5]) > 0 then
    return 'other'
  end
  found = 'part'
elseif redis.call('EXISTS', unpack(KEYS)) > 0 then
  return 'other'
end
if ARGV[5] == 'take' then
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'head', ARGV[4], 'erasing', ARGV[2], 'origin', ARGV[3])
end
return found
