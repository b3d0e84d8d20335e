"""Models: streamed loading, transformers' quantizer hook, heads, packed attention, and what families call their parts."""
