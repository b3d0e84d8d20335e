"""A linear layer whose dense weight is of a narrower type than its products are computed in."""
