-- The clock of the server that has KEYS[1]: seconds and microseconds.
return redis.call('TIME')
