"""Whole jobs: fine-tune, evaluate, generate, merge, quantize, inspect."""
