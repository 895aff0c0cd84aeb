-- The documents that come next of a scan.
--
-- KEYS  meta, idx
-- ARGV  seq and path after which to begin (without a path: with that seq), most documents
-- Reply their paths

local from = tonumber(ARGV[1])
return redis.call('ZRANGE', KEYS[2], decimal(from), '+inf', 'BYSCORE', 'LIMIT', behind(KEYS[2], from, ARGV[2]), ARGV[3])
