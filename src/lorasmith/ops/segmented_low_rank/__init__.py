"""The thin products of a batch whose rows belong to different adapters, each row by its own factors."""
