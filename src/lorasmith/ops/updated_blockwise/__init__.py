"""A linear layer whose weight is stored in blocks, and a low-rank update in the same product: training on a GPU."""
