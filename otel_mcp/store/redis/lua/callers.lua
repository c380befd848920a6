-- Add callers to those of a day, under KEYS[1], and return how many there are. ARGV: for how many ms they are kept, hashes.
if ARGV[2] then
  redis.call('PFADD', KEYS[1], unpack(ARGV, 2))
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
end
return redis.call('PFCOUNT', KEYS[1])
