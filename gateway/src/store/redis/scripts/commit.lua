-- Commits a group, as `CommitGroup` says. All is checked before the first write, since nothing is taken back.
--
-- KEYS  meta, log, idx, clients, results, conflicts, users, dead, marks, then the documents that the items name.
-- ARGV  the group's, then the documents' paths, then item by item; see `commit.rs`, which writes them in the same order.
-- Reply lineage, documents and bytes of the space, and of each item a string: a letter and what belongs to it.

local log, idx, clients, results = KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local conflicts, users, dead, marks = KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local FIXED = 9

local arg = 0
local function next_arg()
  arg = arg + 1
  return ARGV[arg]
end
local function next_number()
  return tonumber(next_arg())
end

local publish, channel = next_arg(), next_arg()
local now, planned_on, fresh = next_number(), next_arg(), next_arg()
local keep_clients, keep_firsts, keep_results = next_number(), next_number(), next_number()
local log_most, log_most_bytes = next_number(), next_number()
local cf_most, cf_most_bytes = next_number(), next_number()
local mark_every, lineage_most, trim_steps = next_number(), next_number(), next_number()
local doc_count = next_number()
local paths = {}
for i = 1, doc_count do
  paths[i] = next_arg()
end
local item_count = next_number()

local meta = meta_of(KEYS[1])
if meta.erasing then
  return redis.error_reply('TGERASING the space is being erased')
end
local idx_size = redis.call('ZCARD', idx)
local forget_log = false
if not meta.exists then
  -- Its history is unknown, so no position of it is valid; what is left is the state at the highest seq.
  meta.head = highest(idx, log)
  meta.floor, meta.log_first, meta.idx, forget_log = meta.head, meta.head + 1, idx_size, true
elseif idx_size ~= meta.idx then
  return partial('the index holds ' .. idx_size .. ' documents of ' .. decimal(meta.idx))
elseif redis.call('XLEN', log) ~= meta.head + 1 - meta.log_first then
  -- Of a log with a hole nothing is of use. It begins anew.
  meta.log_first, meta.log_bytes, forget_log = meta.head + 1, 0, true
end

-- What is written below without having been read: a key of another type would fail half-way.
for at, kind in pairs({ [5] = 'hash', [6] = 'stream', [7] = 'zset', [8] = 'zset', [9] = 'zset' }) do
  local found = redis.call('TYPE', KEYS[at]).ok
  if found ~= kind and found ~= 'none' then
    return partial(KEYS[at] .. ' is a ' .. found)
  end
end

-- Headers, as items find them.
local headers = {}
for i = 1, doc_count do
  local header = redis.call('HGET', KEYS[FIXED + i], '')
  local score = redis.call('ZSCORE', idx, paths[i])
  if (header and unpack_at(header, 1)) ~= (score and tonumber(score)) then
    return torn(paths[i])
  end
  headers[i] = header
end

local planned, found_lineage = planned_on == meta.epoch, meta.lineage
local life = string.match(replication, 'master_replid:(%w+)')
local minted = life ~= meta.life
if minted then
  meta.lineage = meta.lineage .. fresh .. pack(meta.head) .. struct.pack('>I4', #life) .. life
  meta.epoch, meta.life = fresh, life
end

-- What the items do, to be written once all are judged.
local records, kept, enrolled = {}, {}, {}
local writers_written = {}
local fields, tombs, payloads, applied, noted = {}, {}, {}, {}, {}
local replies = {}

local function record_of(writer)
  if records[writer] == nil then
    records[writer] = redis.call('HGET', clients, writer)
  end
  return records[writer]
end

local function slot(writer, mid)
  return writer .. string.char(mid % keep_results)
end

local function result_of(writer, mid)
  local at = slot(writer, mid)
  local result = kept[at]
  if result == nil then
    result = redis.call('HGET', results, at)
  end
  return result and unpack_at(result, 1) == mid and result
end

-- The answer that mid and key alone give, if any.
local function check_mid(item, record)
  if not record then
    local old = item.first and (item.first + keep_firsts < now or (meta.forgotten and item.first <= meta.forgotten))
    if item.mid ~= 1 or old then
      return 'U'
    end
    return nil
  end
  local last = unpack_at(record, 1)
  if last == 0 then
    return 'U'
  end
  if item.mid <= last then
    local result = result_of(item.writer, item.mid)
    if not result then
      return 'U'
    elseif string.sub(result, 9, 16) ~= item.key then
      return 'C'
    end
    return 'D' .. string.sub(result, 9)
  end
  if item.mid > last + 1 then
    return 'O' .. pack(last + 1)
  end
  if string.sub(record, 9, 16) ~= item.prev then
    return 'C'
  end
  return nil
end

local function expectations_hold(item)
  for _, expected in ipairs(item.expects) do
    local header = headers[expected.doc]
    local stands = header and unpack_at(header, 1)
    local want = expected.seq
    if expected.item then
      want = applied[expected.item]
      if not want then
        return false
      end
    end
    if stands ~= want then
      return false
    end
  end
  return true
end

local function next_item()
  local item = {
    writer = next_arg(), user = next_arg(), mid = next_number(), key = next_arg(), prev = next_arg(),
    first = tonumber(next_arg()), expects = {}, docs = {}, conflicts = {},
  }
  for i = 1, next_number() do
    local doc, kind, n = next_number(), next_arg(), next_number()
    item.expects[i] = { doc = doc, seq = kind == 's' and n or false, item = kind == 'i' and n }
  end
  item.refused, item.detail = next_arg(), next_arg()
  if item.refused == '' then
    item.now, item.body = tonumber(next_arg()), next_arg()
    for i = 1, next_number() do
      local doc = { at = next_number(), flags = next_arg(), size = next_number(), cells = {} }
      for c = 1, 2 * next_number() do
        doc.cells[c] = next_arg()
      end
      item.docs[i] = doc
    end
  end
  for i = 1, next_number() do
    local conflict = { entry = next_arg(), patches = {} }
    for p = 1, next_number() do
      conflict.patches[p] = { at = next_number(), item = next_number() }
    end
    item.conflicts[i] = conflict
  end
  return item
end

local function usage_of(header)
  if header and string.byte(header, 41) == 1 then
    return 1, unpack_at(header, 33)
  end
  return 0, 0
end

local function write_doc(doc, stamp, seq)
  local old = headers[doc.at]
  local born, deleted, alive = string.match(doc.flags, '^(.)(.)(.)$')
  local header = stamp
    .. ((born == '0' and old) and string.sub(old, 17, 32) or stamp)
    .. pack(doc.size)
    .. (alive == '1' and '\1' or '\0')
    .. (deleted == '1' and stamp or (old and string.sub(old, 42) or ''))
  local docs_before, bytes_before = usage_of(old)
  local docs_after, bytes_after = usage_of(header)
  meta.docs = math.max(meta.docs + docs_after - docs_before, 0)
  meta.bytes = math.max(meta.bytes + bytes_after - bytes_before, 0)
  if not old then
    meta.idx = meta.idx + 1
  end
  headers[doc.at] = header
  local mine = fields[doc.at] or {}
  fields[doc.at] = mine
  for c = 1, #doc.cells, 2 do
    local field, value = doc.cells[c], doc.cells[c + 1]
    mine[#mine + 1] = field
    mine[#mine + 1] = stamp .. value
    if value == '' then
      tombs[#tombs + 1] = seq
      tombs[#tombs + 1] = paths[doc.at] .. '\0' .. field
    end
  end
  if alive == '0' then
    tombs[#tombs + 1] = seq
    tombs[#tombs + 1] = paths[doc.at]
  end
end

local function judge(item, i)
  local found = record_of(item.writer)
  local record = found
  if record and unpack_at(record, 17) + keep_clients < now then
    record = false
  end
  local answer = check_mid(item, record)
  if answer then
    if string.sub(answer, 1, 1) == 'D' then
      -- A client that only repeats itself is alive.
      local when = math.max(unpack_at(record, 17), now)
      records[item.writer] = string.sub(record, 1, 16) .. pack(when) .. string.sub(record, 25)
      writers_written[item.writer] = true
    end
    return answer
  end
  if not planned or not expectations_hold(item) then
    return 'S' .. pack(meta.at)
  end
  local at = math.max(now, meta.at)
  local position
  if item.refused == '' then
    if item.now and item.now ~= at then
      return 'S' .. pack(meta.at)
    end
    local seq = meta.head + 1
    meta.head, meta.at = seq, at
    applied[i] = seq
    local payload = '\207' .. pack(seq) .. '\207' .. pack(at) .. item.body
    payloads[#payloads + 1] = payload
    meta.log_bytes = meta.log_bytes + #payload
    for _, doc in ipairs(item.docs) do
      write_doc(doc, pack(seq) .. item.writer, seq)
    end
    answer = 'A' .. pack(seq) .. pack(at)
  else
    answer = 'R' .. pack(meta.head)
  end
  position = meta.epoch .. pack(meta.head)
  -- Of the record before nothing may be left: what it answered would pass for this one's.
  if found and not record then
    for n = 0, keep_results - 1 do
      kept[item.writer .. string.char(n)] = false
    end
  end
  if not record or #record < 32 then
    enrolled[#enrolled + 1] = '0'
    enrolled[#enrolled + 1] = item.user .. item.writer
  end
  -- A clock may go back; when a client was last heard of does not.
  local when = math.max(record and unpack_at(record, 17) or 0, now)
  records[item.writer] = pack(item.mid) .. item.key .. pack(when) .. item.user
  writers_written[item.writer] = true
  kept[slot(item.writer, item.mid)] = pack(item.mid) .. item.key .. position
    .. struct.pack('>I4', #item.refused) .. item.refused .. item.detail
  for _, conflict in ipairs(item.conflicts) do
    local entry = conflict.entry
    for _, patch in ipairs(conflict.patches) do
      local seq = applied[patch.item]
      if seq then
        entry = string.sub(entry, 1, patch.at) .. pack(seq) .. string.sub(entry, patch.at + 9)
      end
    end
    noted[#noted + 1] = position .. pack(at) .. item.writer .. pack(item.mid) .. entry
  end
  return answer
end

for i = 1, item_count do
  replies[i] = judge(next_item(), i)
end

if next(writers_written) == nil then
  -- Nobody wrote, so nothing is: not even that there is such a space, or an epoch.
  return { found_lineage, decimal(meta.docs), decimal(meta.bytes), replies }
end

-- Entries of a stream go up, whatever meta says of it.
if #noted > 0 then
  meta.cf_next = math.max(meta.cf_next, last_given(conflicts))
end

-- From here on it is written. Only the first command could be refused, and then nothing has been: no memory, a disk that
-- fails, an entry of the log that is there already.
local first = meta.head - #payloads
if forget_log then
  -- With the ids that it has given: one beyond the head would refuse all that follow.
  redis.call('UNLINK', log)
end
for n, payload in ipairs(payloads) do
  redis.call('XADD', log, decimal(first + n) .. '-0', 'p', payload)
end

-- Arguments of a command are put on Lua's stack, which has 8,000 places.
local CHUNK = 4000
local function in_chunks(command, key, list)
  for from = 1, #list, CHUNK do
    redis.call(command, key, unpack(list, from, math.min(from + CHUNK - 1, #list)))
  end
end

local touched = {}
for at, mine in pairs(fields) do
  mine[#mine + 1] = ''
  mine[#mine + 1] = headers[at]
  in_chunks('HSET', KEYS[FIXED + at], mine)
  touched[#touched + 1] = decimal(unpack_at(headers[at], 1))
  touched[#touched + 1] = paths[at]
end
in_chunks('ZADD', idx, touched)
for i = 1, #tombs, 2 do
  tombs[i] = decimal(tombs[i])
end
in_chunks('ZADD', dead, tombs)

local changed = {}
for writer in pairs(writers_written) do
  changed[#changed + 1] = writer
  changed[#changed + 1] = records[writer]
end
in_chunks('HSET', clients, changed)
local set, gone = {}, {}
for at, result in pairs(kept) do
  if result then
    set[#set + 1] = at
    set[#set + 1] = result
  else
    gone[#gone + 1] = at
  end
end
in_chunks('HDEL', results, gone)
in_chunks('HSET', results, set)
in_chunks('ZADD', users, enrolled)

for _, record in ipairs(noted) do
  redis.call('XADD', conflicts, decimal(meta.cf_next + 1) .. '-0', 'r', record)
  meta.cf_next = meta.cf_next + 1
  meta.cf_bytes = meta.cf_bytes + #record
end

-- Trims what exceeds a count or bytes, the oldest first.
local function trim(stream, count, bytes, most, most_bytes, added)
  local last
  for _ = 1, trim_steps + 2 * added do
    if count == 0 or (count <= most and bytes <= most_bytes) then
      break
    end
    local entry = redis.call('XRANGE', stream, last and '(' .. last or '-', '+', 'COUNT', 1)[1]
    if not entry then
      break
    end
    last, count, bytes = entry[1], count - 1, math.max(bytes - #entry[2][2], 0)
  end
  if last then
    redis.call('XTRIM', stream, 'MINID', string.match(last, '^(%d+)') + 1)
  end
  return count, bytes
end
if #payloads > 0 then
  local count, bytes = trim(log, meta.head + 1 - meta.log_first, meta.log_bytes, log_most, log_most_bytes, #payloads)
  meta.log_first, meta.log_bytes = meta.head + 1 - count, bytes
end
if #noted > 0 then
  local _
  local count = redis.call('XLEN', conflicts)
  _, meta.cf_bytes = trim(conflicts, count, meta.cf_bytes, cf_most, cf_most_bytes, #noted)
end

-- The head as it was before this commit had a time; now it has another.
if #payloads > 0 and (not meta.mark or meta.at - meta.mark >= mark_every) then
  meta.mark = meta.at
  redis.call('ZADD', marks, decimal(meta.at), decimal(first + 1))
end

if minted then
  meta.lineage = without_forgotten(meta.lineage, meta.floor, lineage_most)
  redis.call('HSET', KEYS[1], 'epoch', meta.epoch, 'life', meta.life, 'lineage', meta.lineage)
end
redis.call('HSET', KEYS[1], 'head', decimal(meta.head), 'at', decimal(meta.at), 'floor', decimal(meta.floor),
  'docs', decimal(meta.docs), 'bytes', decimal(meta.bytes), 'idx', decimal(meta.idx),
  'log_first', decimal(meta.log_first), 'log_bytes', decimal(meta.log_bytes),
  'cf_next', decimal(meta.cf_next), 'cf_bytes', decimal(meta.cf_bytes))
if meta.mark then
  redis.call('HSET', KEYS[1], 'mark', decimal(meta.mark))
end

if #payloads > 0 then
  local message = { meta.epoch }
  for _, payload in ipairs(payloads) do
    message[#message + 1] = struct.pack('>I4', #payload) .. payload
  end
  redis.call(publish, channel, table.concat(message))
end
return { meta.lineage, decimal(meta.docs), decimal(meta.bytes), replies }
