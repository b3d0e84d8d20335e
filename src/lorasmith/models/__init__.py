"""Models: streamed loading, transformers' quantizer hook, heads, packed attention, names of families."""
