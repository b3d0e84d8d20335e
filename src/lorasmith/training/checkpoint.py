"""Checkpoints: folders step-000200/ that are written whole or not at all, and believed only when they are whole.

trainable.safetensors   every trained tensor by parameter name
optimizer.safetensors   what the optimizer remembers
method.safetensors      what the methods remember beside what they train (AdaLoRA's scores), where they do
random.safetensors      states of torch's generators
state.json              position, data position, other generators, and the digests of the files above
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lorasmith.atomic import atomic_folder
from lorasmith.errors import RunError
from lorasmith.methods import TrainingPart
from lorasmith.training import random_state
from lorasmith.training.optimizers import Optimizer
from lorasmith.training.position import Position

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{6,})")
_TRAINABLE, _OPTIMIZER, _RANDOM = "trainable.safetensors", "optimizer.safetensors", "random.safetensors"
_METHOD = "method.safetensors"
_STATE = "state.json"
_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """One whole checkpoint on the disk."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps that were done when it was written."""
        return int(self.state["position"]["step"])


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained, by name; a parameter under two names counts once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save(
    checkpoints: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: Optimizer,
    position: Position,
    loader_state: Mapping[str, Any],
    parts: Mapping[str, TrainingPart] | None = None,
) -> Checkpoint:
    """Write the checkpoint of position.step into checkpoints; WriteError where the disk does not take it."""
    path = checkpoints / f"step-{position.step:06d}"
    state: dict[str, Any] = {
        "version": _VERSION,
        "position": position.to_json(),
        "optimizer_steps": optimizer.steps,
        "loader": dict(loader_state),
        "random": random_state.captured_numbers(),
    }
    # a damaged checkpoint of this step may lie there
    with atomic_folder(path, replace=True) as temporary:
        save_file(_copied(parameters), temporary / _TRAINABLE)
        save_file(_copied(optimizer.state_tensors()), temporary / _OPTIMIZER)
        save_file(_copied(random_state.captured_tensors()), temporary / _RANDOM)
        names = [_TRAINABLE, _OPTIMIZER, _RANDOM]
        if parts:
            kept = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state().items()}
            save_file(_copied(kept), temporary / _METHOD)
            names.append(_METHOD)
        state["sha256"] = {name: _digest(temporary / name) for name in names}
        (temporary / _STATE).write_text(json.dumps(state), encoding="utf-8")
    return Checkpoint(path, state)


def latest(checkpoints: Path) -> Checkpoint | None:
    """The newest whole checkpoint, or None; damaged ones are passed over with a line in the log."""
    for path in reversed(_folders(checkpoints)):
        checkpoint = _read(path)
        if checkpoint is not None:
            return checkpoint
    return None


def at_step(checkpoints: Path, step: int) -> Checkpoint | None:
    """The whole checkpoint of a step, or None."""
    return _read(checkpoints / f"step-{step:06d}")


def restore(
    checkpoint: Checkpoint, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer
) -> tuple[Position, dict[str, Any]]:
    """Put parameters, optimizer and random generators back; returns the position and the loader's state.

    Raises RunError, naming the tensor, where the model's trained tensors are not those of the checkpoint.
    """
    load_trainable_(checkpoint, parameters)
    optimizer.load_state(int(checkpoint.state["optimizer_steps"]), load_file(checkpoint.path / _OPTIMIZER))
    random_state.restore_numbers(checkpoint.state["random"])
    random_state.restore_tensors(load_file(checkpoint.path / _RANDOM))
    return Position.from_json(checkpoint.state["position"]), dict(checkpoint.state["loader"])


@torch.no_grad()
def load_trainable_(checkpoint: Checkpoint, parameters: Mapping[str, nn.Parameter]) -> None:
    """Put only the trained tensors back; RunError, naming the tensor, where they do not fit."""
    tensors = load_file(checkpoint.path / _TRAINABLE)
    for name in sorted(tensors.keys() ^ parameters.keys()):
        where = "in the checkpoint but not trained by this model" if name in tensors else "trained but not in it"
        raise RunError(f"{checkpoint.path} does not fit the model: {name} is {where}; resume with the run's own recipe")
    for name, tensor in tensors.items():
        if tensor.shape != parameters[name].shape or tensor.dtype != parameters[name].dtype:
            raise RunError(
                f"{checkpoint.path} does not fit the model: {name} is {tuple(tensor.shape)} {tensor.dtype} there and "
                f"{tuple(parameters[name].shape)} {parameters[name].dtype} here; resume with the run's own recipe"
            )
    for name, tensor in tensors.items():
        parameters[name].copy_(tensor)


def load_parts_(checkpoint: Checkpoint, parts: Mapping[str, TrainingPart]) -> None:
    """Put back what the methods remember, by adapter; RunError where the checkpoint holds nothing of theirs."""
    if not parts:
        return
    if not (checkpoint.path / _METHOD).is_file():
        raise RunError(f"{checkpoint.path} holds no {_METHOD}; resume with the run's own recipe")
    tensors = load_file(checkpoint.path / _METHOD)
    for name, part in parts.items():
        start = f"{name}."
        part.load_state({key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)})


def prune(checkpoints: Path, keep: int, best_step: int | None) -> None:
    """Remove all but the newest keep checkpoints and the best one."""
    for path in _folders(checkpoints)[:-keep]:
        if path.name != f"step-{best_step or 0:06d}":
            _remove(path)


def sweep(checkpoints: Path) -> None:
    """Remove what a killed run left half-written."""
    for path in checkpoints.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def remove_after(checkpoints: Path, step: int) -> None:
    """Remove checkpoints later than step (damaged ones, from before a resume), which would be taken for new ones."""
    for path in _folders(checkpoints):
        if int(path.name.removeprefix("step-")) > step:
            _remove(path)


def _folders(checkpoints: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    found = [path for path in checkpoints.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def _read(path: Path) -> Checkpoint | None:
    try:
        state = json.loads((path / _STATE).read_text(encoding="utf-8"))
        for name, digest in state["sha256"].items():
            if _digest(path / name) != digest:
                raise ValueError(f"{name} has changed since it was written")
        if state["version"] != _VERSION:
            raise ValueError(f"its version is {state['version']}, not {_VERSION}")
    except (OSError, ValueError, KeyError) as error:
        logger.warning("%s is not a whole checkpoint and is passed over: %s", path, error)
        return None
    return Checkpoint(path, state)


def _remove(path: Path) -> None:
    # renamed first: a kill in the middle of removing must not leave something that looks like a checkpoint
    doomed = path.with_name(f".{path.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
