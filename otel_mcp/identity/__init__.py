"""Find the session that a request belongs to."""
