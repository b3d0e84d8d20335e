"""Checks of the data, the tokenizer and the adapted model's shapes, before any weight is read."""
