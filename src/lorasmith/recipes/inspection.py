"""What a folder holds, read from headers: an adapter, a checkpoint, or a run with its adapter."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from lorasmith.attach import WEIGHTS_FILE
from lorasmith.errors import ModelError
from lorasmith.methods import matches
from lorasmith.methods.config import CONFIG_FILE, read_config_fields
from lorasmith.models.checkpoint import Checkpoint, open_checkpoint, quantization_of
from lorasmith.models.tensor_file import StoredTensor, read_header
from lorasmith.planning.memory_plan import readable
from lorasmith.quantized import Scheme
from lorasmith.quantized.bitsandbytes_keys import STORED_NAMES, read_quant_state, scheme_of
from lorasmith.recipes.adapter_home import adapter_home
from lorasmith.recipes.reading import read_recipe
from lorasmith.training.run_folder import RunFolder

# fields of an adapter's config that the line above them or the lines below them tell, or that say nothing of it
_TOLD_ALREADY = {"peft_type", "base_model_name_or_path", "inference_mode", "auto_mapping", "peft_version", "revision"}
# what a quantized weight always has beside its codes
_SCALES = ("weight.absmax", "SCB", "weight.scales")


@dataclass(frozen=True)
class QuantizedEntry:
    """A quantized weight of a checkpoint: logical shape, storage, and the bytes of all its tensors on disk."""

    shape: tuple[int, ...]
    scheme: Scheme
    disk_bytes: int

    @property
    def payload(self) -> int:
        """Bytes of codes and scales, without the tables that the file repeats for every weight."""
        return self.scheme.payload_bytes(self.shape)


def inspection_lines(path: str, every_tensor: bool = False) -> Iterator[str]:
    """Lines for people about the adapter, checkpoint or run in the folder path.

    Raises ModelError or AdapterError where it is none of them, or its files are damaged.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ModelError(f"{path} is no folder; name the folder of an adapter, a checkpoint or a run")
    run = RunFolder(folder)
    if run.recipe.is_file():
        recipe = read_recipe(run.recipe)
        yield f"run {folder}: {recipe.task}, {recipe.method['name']} on {recipe.model.path}"
        folder = adapter_home(run)
        if not folder.is_dir():
            yield f"no adapter yet; `lorasmith train --resume {path}` goes on"
            return
    if (folder / CONFIG_FILE).is_file():
        yield from _adapter_lines(folder, every_tensor)
    else:
        # headers only: no code of the folder runs
        yield from _checkpoint_lines(open_checkpoint(folder, trust_remote_code=True), every_tensor)


def _adapter_lines(folder: Path, every_tensor: bool) -> Iterator[str]:
    fields = read_config_fields(folder)
    if not (folder / WEIGHTS_FILE).is_file():
        raise ModelError(f"{folder} has no {WEIGHTS_FILE}; save the adapter again")
    tensors = read_header(folder / WEIGHTS_FILE)
    yield f"adapter {folder}: {fields['peft_type']} for {fields.get('base_model_name_or_path') or 'an unnamed base'}"
    for name, value in fields.items():
        if name not in _TOLD_ALREADY and value not in (None, False, [], {}):
            yield f"{name}: {', '.join(sorted(map(str, value))) if isinstance(value, list) else value}"
    yield from _place_lines(tensors, fields.get("target_modules"))
    yield f"in all: {_counted(list(tensors.values()))}"
    yield from _tensor_lines(tensors, every_tensor)


def _place_lines(tensors: dict[str, StoredTensor], targets: Any) -> Iterator[str]:
    """A line for each kind of place in the model, with the numbers of its layers, and its tensors with their shapes."""
    modules: dict[str, dict[str, str]] = {}
    for key, tensor in tensors.items():
        path, kind = _split(key, targets)
        modules.setdefault(path, {})[kind] = " x ".join(map(str, tensor.shape)) or "scalar"
    numbers: dict[tuple[str, str, str], list[int]] = {}
    for path, kinds in modules.items():
        told = ", ".join(f"{kind} {shape}".strip() for kind, shape in sorted(kinds.items()))
        layer = re.search(r"(?<=\.)\d+(?=\.)", path)
        ends = (path[: layer.start()], path[layer.end() :]) if layer else (path, "")
        numbers.setdefault((*ends, told), []).extend([int(layer[0])] if layer else [])
    for (before, after, told), layers in numbers.items():
        yield f"{before}{f'({_ranges(layers)}){after}' if layers else ''}: {told}"


def _split(key: str, targets: Any) -> tuple[str, str]:
    """The path of the module that a tensor belongs to, as far as the targets tell, and what the tensor is there."""
    parts = key.removeprefix("base_model.").removeprefix("model.").split(".")
    ends = range(len(parts) - 1, 0, -1)
    end = next((end for end in ends if matches(".".join(parts[:end]), targets)), max(1, len(parts) - 1))
    return ".".join(parts[:end]), ".".join(parts[end:])


def _ranges(numbers: list[int]) -> str:
    """Numbers as 0-3, 7."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in found)


def _checkpoint_lines(checkpoint: Checkpoint, every_tensor: bool) -> Iterator[str]:
    config = checkpoint.config
    stored = quantization_of(config)
    architecture = ", ".join(config.get("architectures") or [config.get("model_type", "unknown architecture")])
    method = f", quant_method {stored.get('quant_method', 'bitsandbytes')}" if stored else ""
    yield f"checkpoint {checkpoint.folder}: {architecture}{method}"
    quantized, dense = _sorted_out(checkpoint)
    for scheme in sorted({entry.scheme for entry in quantized.values()}, key=str):
        yield _scheme_line(scheme, [entry for entry in quantized.values() if entry.scheme == scheme])
    for dtype in sorted({str(tensor.dtype) for tensor in dense.values()}):
        found = [tensor for tensor in dense.values() if str(tensor.dtype) == dtype]
        yield f"{dtype.removeprefix('torch.')}: {_counted(found)}"
    yield _total_line(list(quantized.values()), list(dense.values()))
    yield from _tensor_lines(checkpoint.tensors, every_tensor)


def _scheme_line(scheme: Scheme, entries: list[QuantizedEntry]) -> str:
    elements = sum(prod(entry.shape) for entry in entries)
    payload = sum(entry.payload for entry in entries)
    disk = sum(entry.disk_bytes for entry in entries)
    return (
        f"{scheme}: {len(entries)} weights, {elements:,} parameters, {8 * payload / elements:.3f} bits a weight "
        f"({readable(payload)}), {readable(disk - payload)} of tables beside them"
    )


def _total_line(quantized: list[QuantizedEntry], dense: list[StoredTensor]) -> str:
    elements = sum(prod(entry.shape) for entry in quantized) + sum(prod(tensor.shape) for tensor in dense)
    size = sum(entry.disk_bytes for entry in quantized) + sum(tensor.nbytes for tensor in dense)
    return f"in all: {elements:,} parameters, {readable(size)}, {8 * size / max(1, elements):.3f} bits a parameter"


def _sorted_out(checkpoint: Checkpoint) -> tuple[dict[str, QuantizedEntry], dict[str, StoredTensor]]:
    """Quantized weights by module, and the dense tensors."""
    modules = {
        name.removesuffix(end): None for name in checkpoint.tensors for end in _SCALES if name.endswith("." + end)
    }
    dense = dict(checkpoint.tensors)
    quantized = {}
    for prefix in modules:
        parts = {name: dense.pop(prefix + name) for name in STORED_NAMES if prefix + name in dense}
        quantized[prefix] = _entry(prefix, parts, quantization_of(checkpoint.config) or {})
    return quantized, dense


def _entry(prefix: str, parts: dict[str, StoredTensor], stored: dict[str, object]) -> QuantizedEntry:
    size = sum(tensor.nbytes for tensor in parts.values())
    if "weight" not in parts:
        raise ModelError(f"{prefix}weight is missing beside its scales; download the checkpoint again")
    if "SCB" in parts:
        return QuantizedEntry(parts["weight"].shape, Scheme("int8"), size)
    if "weight.absmax" in parts:
        small = {name: tensor.read() for name, tensor in parts.items() if "quant_state" in name}
        state = read_quant_state(small, prefix + "weight")
        return QuantizedEntry(tuple(state["shape"]), scheme_of(state), size)
    scheme = Scheme(
        str(stored["format"]),
        int(str(stored["blocksize"])),
        bool(stored["double_quant"]),
        bool(stored.get("zero_points", False)),
    )
    # our own layout keeps no shape beside the codes: the count is exact but for the padding of an odd one
    return QuantizedEntry((1, parts["weight"].nbytes * 8 // scheme.number_format.bits), scheme, size)


def _counted(tensors: list[StoredTensor]) -> str:
    elements = sum(prod(tensor.shape) for tensor in tensors)
    return f"{len(tensors)} tensors, {elements:,} parameters, {readable(sum(tensor.nbytes for tensor in tensors))}"


def _tensor_lines(tensors: dict[str, StoredTensor], wanted: bool) -> Iterator[str]:
    for name, tensor in sorted(tensors.items()) if wanted else []:
        yield f"  {name}  {str(tensor.dtype).removeprefix('torch.')}  {'x'.join(map(str, tensor.shape)) or 'scalar'}"
