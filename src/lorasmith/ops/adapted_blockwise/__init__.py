"""A linear layer whose weight is stored in blocks, with one low-rank update, without gradients: generation."""
