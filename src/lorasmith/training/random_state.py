"""The state of every random generator that training draws from."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_all(seed: int) -> None:
    """Start the global generators of Python, numpy and torch (all devices) from seed."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def captured_tensors() -> dict[str, Tensor]:
    """States of torch's generators, by device: uint8 [bytes]."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda:{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore_tensors(states: Mapping[str, Tensor]) -> None:
    """Undo what has been drawn from torch's generators since captured_tensors."""
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available():
        for name, state in states.items():
            if name.startswith("cuda:") and int(name[5:]) < torch.cuda.device_count():
                torch.cuda.set_rng_state(state, int(name[5:]))
    if torch.backends.mps.is_available() and "mps" in states:
        torch.mps.set_rng_state(states["mps"])


def captured_numbers() -> dict[str, Any]:
    """States of Python's and numpy's generators, in what JSON can hold."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, next_gauss = random.getstate()
    return {
        "python": [version, list(words), next_gauss],
        "numpy": [np.asarray(keys).tolist(), int(position), int(has_gauss), float(gauss)],
    }


def restore_numbers(states: Mapping[str, Any]) -> None:
    """Undo what has been drawn from Python's and numpy's generators since captured_numbers."""
    version, words, next_gauss = states["python"]
    random.setstate((version, tuple(words), next_gauss))
    keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
