-- Looks at a key, on the server that commits: a replica may hold what is no longer so.
--
-- KEYS  meta, and the key, if the command has one
-- ARGV  a command that reads, and what follows the key
-- Reply the server's life, which its cursors belong to, and what the command answers

local life = string.match(replication, 'master_replid:(%w+)')
if KEYS[2] then
  return { life, redis.call(ARGV[1], KEYS[2], unpack(ARGV, 2)) }
end
return { life, redis.call(unpack(ARGV)) }
