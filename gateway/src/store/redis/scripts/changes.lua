-- Documents in the order of the seq that last touched them. Their keys have to be declared, so the caller has looked
-- at the index before: the scan ends before a document that it did not name, and is complete if it meets none.
--
-- KEYS  meta, log, idx, clients, then the documents that may be read
-- ARGV  seq and path after which to begin (without a path: with that seq), writer or nothing, most visits,
--       bytes after which no document is begun, number of documents, their paths, then the collections, or nothing for all
-- Reply state, whether it is complete, the writer's record or nothing, seq and path of the last document visited,
--       then path and fields with values of each document in turn.

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

local from, from_path, writer = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local visits, bytes, named = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local keys = {}
for i = 1, named do
  keys[ARGV[6 + i]] = KEYS[4 + i]
end
local collections
for i = 7 + named, #ARGV do
  collections = collections or {}
  collections[ARGV[i]] = true
end

local found, spent, complete = {}, 0, '0'
local last_seq, last_path = '', ''
local CHUNK, offset, ended = 128, behind(KEYS[3], from, from_path), false
while not ended do
  local some = redis.call('ZRANGE', KEYS[3], decimal(from), '+inf', 'BYSCORE', 'LIMIT', offset, CHUNK, 'WITHSCORES')
  offset = offset + CHUNK
  if #some == 0 then
    complete = '1'
    break
  end
  for i = 1, #some, 2 do
    local path, seq = some[i], tonumber(some[i + 1])
    local covered = not collections or collections[string.match(path, '^(.*)/')]
    if visits == 0 or spent >= bytes or (covered and not keys[path]) then
      ended = true
      break
    end
    visits = visits - 1
    if covered then
      local doc = redis.call('HGETALL', keys[path])
      local header = redis.call('HGET', keys[path], '')
      if not header or unpack_at(header, 1) ~= seq then
        return torn(path)
      end
      for _, part in ipairs(doc) do
        spent = spent + #part
      end
      found[#found + 1] = path
      found[#found + 1] = doc
    end
    last_seq, last_path = decimal(seq), path
  end
end
local record = complete == '1' and writer ~= '' and redis.call('HGET', KEYS[4], writer) or ''
return { state_of(meta), complete, record, last_seq, last_path, found }
