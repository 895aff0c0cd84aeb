-- Where spaces stand: all of one slot.
--
-- KEYS  meta, log, idx of each in turn
-- Reply state of each

local reply = {}
for i = 1, #KEYS, 3 do
  local meta = meta_of(KEYS[i])
  if not meta.exists then
    meta.head = highest(KEYS[i + 2], KEYS[i + 1])
  end
  reply[#reply + 1] = state_of(meta)
end
return reply
