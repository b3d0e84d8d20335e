"""Quantizing and dequantizing in flat blocks with a codebook of 16 or 256 levels."""
