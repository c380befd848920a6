"""Where we meet the libraries: each module patches one of them, guarded, and can be undone."""
