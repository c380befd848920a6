-- Keep an agreed value (ARGV[1]) alive for ARGV[2] ms; put it back if it is gone.
if redis.call('PEXPIRE', KEYS[1], ARGV[2]) == 0 then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return 1
