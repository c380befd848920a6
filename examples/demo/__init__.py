"""The demo behind `make demo`: a real server, real clients, and what was seen of them."""
