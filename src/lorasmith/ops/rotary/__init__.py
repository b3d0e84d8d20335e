"""Rotary position embedding of queries and keys, as one step that keeps the table only."""
