"""Hours of mixed traffic on a real server: what grows, and is it ours? See ``__main__``."""
