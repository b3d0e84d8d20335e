"""A frozen linear layer and its low-rank updates as one autograd step."""
