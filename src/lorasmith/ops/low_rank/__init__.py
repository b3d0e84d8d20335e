"""The thin products of a low-rank update, forward and backward."""
