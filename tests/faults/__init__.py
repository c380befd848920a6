"""A server with and without us, side by side, while its store fails in every way: see ``__main__``."""
