"""Tensors that are made once and shared by all that comes after, whatever is going on when they are first asked for."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily


@contextmanager
def lasting() -> Iterator[None]:
    """A block whose new tensors are ordinary under inference_mode, and real amid fake ones (the memory plan's)."""
    with unset_fake_temporarily(), torch.inference_mode(False):
        yield
