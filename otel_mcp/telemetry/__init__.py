"""From what has been seen to spans, metrics and events."""
