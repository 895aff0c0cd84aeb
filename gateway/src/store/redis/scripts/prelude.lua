-- Stands in front of every script. KEYS[1] is the space's meta.
--
-- Numbers in Lua are doubles: exact for seqs, mids and times, which stay below 2^53. Writers, keys of mutations, users
-- and epochs are 64 random bits, so they stay strings of 8 bytes. Integers in records are big-endian.

local function pack(n)
  return struct.pack('>I8', n)
end

local function unpack_at(record, at)
  return (struct.unpack('>I8', record, at))
end

-- In decimal: a number of Lua's would get an exponent.
local function decimal(n)
  return string.format('%.0f', n)
end

local replication = redis.call('INFO', 'replication')
if not string.find(replication, 'role:master', 1, true) then
  return redis.error_reply('TGROLE this server is not a primary')
end

local function meta_of(key)
  local function number(text, without)
    return tonumber(text or without) or error(redis.error_reply('TGTORN ' .. key .. ' holds what is no number'))
  end
  local found = redis.call('HMGET', key, 'head', 'at', 'floor', 'docs', 'bytes', 'idx', 'log_first', 'log_bytes',
    'cf_next', 'cf_bytes', 'mark', 'forgotten', 'erasing', 'epoch', 'life', 'lineage')
  return {
    exists = found[1] and true,
    head = number(found[1], 0),
    at = number(found[2], 0),
    floor = number(found[3], 0),
    docs = number(found[4], 0),
    bytes = number(found[5], 0),
    idx = number(found[6], 0),
    log_first = number(found[7], 1),
    log_bytes = number(found[8], 0),
    cf_next = number(found[9], 0),
    cf_bytes = number(found[10], 0),
    mark = found[11] and number(found[11]),
    forgotten = found[12] and number(found[12]),
    erasing = found[13] or nil,
    epoch = found[14] or string.rep('\0', 8),
    life = found[15] or '',
    lineage = found[16] or '',
  }
end

-- The highest id that a stream has given, also where its entries are gone.
local function last_given(stream)
  if redis.call('EXISTS', stream) == 0 then
    return 0
  end
  local info = redis.call('XINFO', 'STREAM', stream)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      return tonumber(string.match(info[i + 1], '^(%d+)'))
    end
  end
  return 0
end

-- The highest seq that index and log know, for a space whose meta is gone.
local function highest(idx, log)
  local last = redis.call('ZRANGE', idx, -1, -1, 'WITHSCORES')
  return math.max(tonumber(last[2] or 0), last_given(log))
end

-- Lua's own comparison goes by the server's locale.
local function is_after(path, other)
  local at = 1
  while true do
    local mine, theirs = string.byte(path, at), string.byte(other, at)
    if mine ~= theirs or not mine then
      return (mine or -1) > (theirs or -1)
    end
    at = at + 1
  end
end

-- How many documents that a seq last touched a scan has behind it which has come to a path, that one too. Without a
-- path it has just come to that seq. Those of one seq stand in the order of their paths' bytes.
local function behind(idx, seq, path)
  if path == '' then
    return 0
  end
  seq = decimal(seq)
  local low, high = 0, redis.call('ZCOUNT', idx, seq, seq)
  while low < high do
    local middle = math.floor((low + high) / 2)
    local found = redis.call('ZRANGE', idx, seq, seq, 'BYSCORE', 'LIMIT', middle, 1)[1]
    if is_after(found, path) then
      high = middle
    else
      low = middle + 1
    end
  end
  return low
end

-- What a reader is told of the space.
local function state_of(meta)
  return {
    decimal(meta.head), decimal(meta.at), decimal(meta.floor), decimal(meta.docs), decimal(meta.bytes),
    decimal(meta.log_first), meta.lineage,
  }
end

-- A lineage without the entries whose next one starts below the floor, and the oldest over the most there may be.
local function without_forgotten(lineage, floor, most)
  local entries, at = {}, 1
  while at <= #lineage do
    entries[#entries + 1] = at
    at = at + 20 + struct.unpack('>I4', lineage, at + 16)
  end
  local from = math.max(#entries - most, 0) + 1
  while entries[from + 1] and unpack_at(lineage, entries[from + 1] + 8) < floor do
    from = from + 1
  end
  return string.sub(lineage, entries[from] or 1)
end

local function partial(what)
  return redis.error_reply('TGPARTIAL ' .. what)
end

-- A document that its header and the index do not agree on, or whose hash is missing.
local function torn(path)
  return redis.error_reply('TGTORN header and index disagree on ' .. path)
end
