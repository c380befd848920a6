"""Frameworks that open a transport session for each tool call, live: one session where a person would say one."""
