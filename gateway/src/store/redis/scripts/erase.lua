-- A step of an erasure. It may be done twice, and by several nodes at once.
--
-- KEYS  meta, idx, clients, results, conflicts, log, users, then the keys that the step names
-- ARGV  the epoch that names the erasure, most results kept a client, the server's life, then what to do, each with its arguments:
--   log                     the log goes
--   conflicts               the conflict log goes
--   key      k              the key of that place goes
--   doc      k path         a document goes
--   cells    k path old new n field…   a document loses fields, and its header becomes another, if it is still the old one
--   conflict id             an entry of the conflict log goes
--   user     member         a client is no longer listed as a user's
--   marker   writer time    a client's record becomes a marker, and its results go
--   index    k path         a document that was found is put into the index, if it is not there
--   counted                 all documents are in the index
-- Reply 1, or 3 where index and meta do not agree on how many documents there are, or 0 if this erasure is over, or 2 if the server has
-- another life

local meta = meta_of(KEYS[1])
if not meta.erasing or string.sub(meta.erasing, 1, 8) ~= ARGV[1] then
  return 0
elseif string.match(replication, 'master_replid:(%w+)') ~= ARGV[3] then
  return 2
end
local FIXED = 7
local at = 3
local function arg()
  at = at + 1
  return ARGV[at]
end
local counts = { docs = 0, cells = 0, commits = 0, conflicts = 0, clients = 0 }
local docs, bytes, idx = meta.docs, meta.bytes, meta.idx
local function drop(key, path, header)
  if redis.call('ZREM', KEYS[2], path) == 1 then
    idx = idx - 1
    counts.docs = counts.docs + 1
  end
  if header and string.byte(header, 41) == 1 then
    docs, bytes = docs - 1, bytes - unpack_at(header, 33)
  end
  redis.call('UNLINK', key)
end
while at < #ARGV do
  local what = arg()
  if what == 'log' then
    counts.commits = counts.commits + redis.call('XLEN', KEYS[6])
    redis.call('UNLINK', KEYS[6])
  elseif what == 'conflicts' then
    counts.conflicts = counts.conflicts + redis.call('XLEN', KEYS[5])
    redis.call('UNLINK', KEYS[5])
    redis.call('HSET', KEYS[1], 'cf_bytes', '0')
  elseif what == 'key' then
    redis.call('UNLINK', KEYS[FIXED + tonumber(arg())])
  elseif what == 'doc' then
    local key, path = KEYS[FIXED + tonumber(arg())], arg()
    local header = false
    if redis.call('TYPE', key).ok == 'hash' then
      counts.cells = counts.cells + math.max(redis.call('HLEN', key) - 1, 0)
      header = redis.call('HGET', key, '')
    end
    drop(key, path, header)
  elseif what == 'cells' then
    local key, path, old, new = KEYS[FIXED + tonumber(arg())], arg(), arg(), arg()
    local fields = {}
    for n = 1, tonumber(arg()) do
      fields[n] = arg()
    end
    if (redis.call('HGET', key, '') or '') == old then
      for from = 1, #fields, 4000 do
        local gone = redis.call('HDEL', key, unpack(fields, from, math.min(from + 3999, #fields)))
        counts.cells = counts.cells + gone
      end
      if old == '' then
        -- Nobody can read what has no header. It goes with its last field.
        if redis.call('EXISTS', key) == 0 then
          drop(key, path, false)
        end
      elseif new == '' then
        drop(key, path, old)
      else
        if string.byte(old, 41) == 1 then
          bytes = bytes + unpack_at(new, 33) - unpack_at(old, 33)
        end
        redis.call('HSET', key, '', new)
      end
    end
  elseif what == 'conflict' then
    local id = arg()
    local entry = redis.call('XRANGE', KEYS[5], id, id)[1]
    if entry then
      meta.cf_bytes = math.max(meta.cf_bytes - #entry[2][2], 0)
      redis.call('XDEL', KEYS[5], id)
      redis.call('HSET', KEYS[1], 'cf_bytes', decimal(meta.cf_bytes))
      counts.conflicts = counts.conflicts + 1
    end
  elseif what == 'index' then
    local key, path = KEYS[FIXED + tonumber(arg())], arg()
    local kind = redis.call('TYPE', key).ok
    local header = kind == 'hash' and redis.call('HGET', key, '')
    local seq = header and unpack_at(header, 1) or meta.head
    if kind ~= 'none' and redis.call('ZADD', KEYS[2], 'NX', decimal(seq), path) == 1 then
      idx = idx + 1
    end
  elseif what == 'counted' then
    idx = redis.call('ZCARD', KEYS[2])
  elseif what == 'user' then
    redis.call('ZREM', KEYS[7], arg())
  elseif what == 'marker' then
    local writer, now = arg(), tonumber(arg())
    local record = redis.call('HGET', KEYS[3], writer)
    if record and unpack_at(record, 1) ~= 0 then
      redis.call('HSET', KEYS[3], writer, string.rep('\0', 16) .. pack(math.max(unpack_at(record, 17), now)))
      counts.clients = counts.clients + 1
    end
    local results = {}
    for n = 1, tonumber(ARGV[2]) do
      results[n] = writer .. string.char(n - 1)
    end
    redis.call('HDEL', KEYS[4], unpack(results))
  end
end
for name, n in pairs(counts) do
  if n > 0 then
    redis.call('HINCRBY', KEYS[1], 'erased_' .. name, n)
  end
end
redis.call('HSET', KEYS[1], 'docs', decimal(math.max(docs, 0)), 'bytes', decimal(math.max(bytes, 0)), 'idx', decimal(idx))
return idx == redis.call('ZCARD', KEYS[2]) and 1 or 3
