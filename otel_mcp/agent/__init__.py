"""The observer agent: asks a language model about sessions that struggle."""
