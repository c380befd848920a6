"""Patches of other libraries, one module for each kind. Failures are contained, and each patch can be undone."""
