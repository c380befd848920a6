"""One HTTP request as it passes: what it asks, what is answered, and which calls it carries."""
