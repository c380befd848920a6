"""Which session a request belongs to, and how we know."""
