"""What a hostile client may send, and what must come of it: nothing."""
