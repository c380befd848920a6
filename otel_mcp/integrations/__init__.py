"""Patches of other libraries: each module meets one of them, guarded, and can be undone."""
