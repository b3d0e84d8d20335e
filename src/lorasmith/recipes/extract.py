"""A LoRA out of a fully tuned checkpoint: the nearest of a rank to what tuning changed in each matrix."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lorasmith.atomic import atomic_folder, new_folder
from lorasmith.attach import KEY_PREFIX, PARTS, AdapterContent, select, shortest_names, write_adapter
from lorasmith.attach.updates import Update, matrix_of, update_of, written
from lorasmith.doctor.place.folder import require_writable
from lorasmith.errors import AttachError, InputError, nearest
from lorasmith.methods import CLASSIFICATION, LayerSpec, TaskType, layer_spec, methods, named
from lorasmith.methods.lora import LoraConfig
from lorasmith.methods.lora.factors import decompose, decompose_roughly
from lorasmith.models.checkpoint import Checkpoint
from lorasmith.models.device import resolve
from lorasmith.models.families import HEADS
from lorasmith.models.tokenizer import has_tokenizer, load_tokenizer
from lorasmith.recipes.base_model import Storage, open_base, skeleton
from lorasmith.recipes.difference import TensorPair, require_dense, tensor_pairs, unmatched, whole_module
from lorasmith.recipes.extraction_table import ErrorByRank, ErrorTable
from lorasmith.recipes.inspection import inspection_lines
from lorasmith.recipes.sections import ModelSection, Task

_TASKS = {"causal": TaskType.CAUSAL_LM, "classification": TaskType.SEQ_CLS}
# --keep of everything that differs and is no target
ALL = "all"


@dataclass(frozen=True)
class Extraction:
    """What is asked for: the rank, the modules to take it of, and what to keep whole beside it.

    keep names modules, or ALL of those that differ; biases takes the changed biases of the targets too. rough finds the
    leading singular values by subspace iteration, for matrices that a whole decomposition takes too long on. device is
    where matrices are decomposed.
    """

    rank: int
    targets: tuple[str, ...] = ("all-linear",)
    keep: tuple[str, ...] = ()
    biases: bool = False
    rough: bool = False
    task: Task = "causal"
    device: str = "auto"


@dataclass
class _Findings:
    """What went through: updates by module, modules to keep whole, and the names of what was left behind."""

    updates: dict[str, Update] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    left: list[str] = field(default_factory=list)
    total: ErrorByRank = field(default_factory=ErrorByRank)


def extract_adapter(base: ModelSection, tuned: ModelSection, wanted: Extraction, out: Path) -> Iterator[str]:
    """Writes to out the adapter that turns base into (nearly) tuned; yields the error by rank and what is left out.

    Matrix by matrix: never more than one of each checkpoint is in memory. Raises ModelError for checkpoints that are
    quantized or do not fit one another, AttachError where nothing matches the targets or none of them changed,
    InputError for an out that holds anything.
    """
    out = new_folder(out)
    _decomposing(wanted.device)
    if wanted.rank < 1:
        raise InputError(f"--rank {wanted.rank} must be at least 1")
    checkpoints = open_base(base), open_base(tuned)
    for checkpoint in checkpoints:
        require_dense(checkpoint)
    model = skeleton(checkpoints[1], tuned, Storage(wanted.task, None), torch.device("cpu"))
    word = wanted.targets[0] if len(wanted.targets) == 1 and wanted.targets[0] in PARTS else None
    config = LoraConfig(
        task_type=_TASKS[wanted.task],
        r=wanted.rank,
        lora_alpha=wanted.rank,
        target_modules=word or list(wanted.targets),
        # what is kept whole is no target too
        modules_to_save=_named_modules(model, wanted.keep),
        base_model_name_or_path=base.path,
    )
    layers = _layers(model, config)
    require_writable(out)
    table = ErrorTable(wanted.rank, layers)
    yield table.head()
    found = _Findings()
    for pair in tensor_pairs(model, *checkpoints):
        errors = _take(pair, layers, wanted, model, found)
        if errors is not None:
            found.total = found.total + errors
            yield table.line(pair.name.removesuffix(".weight"), errors)
    if not found.updates:
        raise AttachError(f"no target module of {tuned.path} differs from {base.path}; there is nothing to extract")
    yield table.line("total", found.total)
    yield from _left_lines(found.left)
    strangers = unmatched(model, *checkpoints)
    if strangers:
        yield f"not compared, since the checkpoints store them under other names: {', '.join(strangers)}"
    with atomic_folder(out) as temporary:
        write_adapter(_adapter(model, config, found, checkpoints[1]), temporary)
        if has_tokenizer(checkpoints[1].folder):
            load_tokenizer(checkpoints[1].folder, trust_remote_code=tuned.trust_remote_code).save_pretrained(temporary)
    yield from inspection_lines(str(out))


def _decomposing(device: str) -> torch.device:
    """Where matrices are decomposed; DeviceError for a device that is not there."""
    found = resolve(device)
    # MPS has no decomposition of its own and hands it to the CPU
    return torch.device("cpu") if found.type == "mps" else found


def _named_modules(model: PreTrainedModel, names: tuple[str, ...]) -> list[str] | None:
    """names without ALL; AttachError for one that no module has."""
    paths = [path for path, _ in model.named_modules() if path]
    for name in names:
        if name != ALL and not any(named(path, name) for path in paths):
            known = {path.rpartition(".")[2] for path in paths}
            raise AttachError(f"--keep {name}: no module is named so.{nearest(name, known)}")
    return [name for name in names if name != ALL] or None


def _layers(model: PreTrainedModel, config: LoraConfig) -> dict[str, LayerSpec]:
    modules = dict(model.named_modules())
    layers = {path: layer_spec(modules[path], path) for path in select(model, config, methods["lora"])}  # type: ignore[arg-type]
    strange = [path for path, layer in layers.items() if layer is None]
    if strange:
        raise AttachError(f"target {strange[0]} is no linear layer, embedding or convolution; leave it out")
    return {path: layer for path, layer in layers.items() if layer is not None}


def _take(
    pair: TensorPair, layers: dict[str, LayerSpec], wanted: Extraction, model: PreTrainedModel, found: _Findings
) -> ErrorByRank | None:
    """Takes one tensor into found: as an update, whose errors it returns, whole, or as something left behind."""
    path, _, kind = pair.name.rpartition(".")
    if path in layers and kind == "weight":
        return _take_update(pair, layers[path], wanted, model.get_submodule(path), found)
    keeper = _keeper(path, wanted)
    if keeper is not None:
        found.kept.add(keeper)
    elif pair.differs():
        if path in found.updates and (wanted.biases or ALL in wanted.keep):
            found.updates[path] = replace(found.updates[path], bias=pair.difference())
        elif path not in layers and ALL in wanted.keep:
            found.kept.add(path)
        else:
            found.left.append(pair.name)
    return None


def _take_update(
    pair: TensorPair, layer: LayerSpec, wanted: Extraction, module: nn.Module, found: _Findings
) -> ErrorByRank | None:
    if pair.base is None:
        raise AttachError(f"{pair.name} is new in the tuned model, so it has no update; name it with --keep")
    difference = pair.difference()
    if not difference.any():
        return None
    # GPT-2's layers are stored [in, out]
    change = difference.T if isinstance(module, Conv1D) else difference
    matrix = matrix_of(change, layer.kind).to(_decomposing(wanted.device))
    if wanted.rough:
        parts = decompose_roughly(matrix, min(4 * wanted.rank, *matrix.shape), torch.Generator().manual_seed(0))
    else:
        parts = decompose(matrix)
    found.updates[layer.path] = update_of(parts.balanced(wanted.rank), change.shape, layer.kind)
    return ErrorByRank.of(parts.s, float(matrix.norm()), complete=len(parts.s) == min(matrix.shape))


def _keeper(path: str, wanted: Extraction) -> str | None:
    """The module, path or one around it, that is saved whole: asked for by name, or a classifier's head, always."""
    parts = path.split(".")
    if _TASKS[wanted.task] in CLASSIFICATION and parts[0] in HEADS:
        return parts[0]
    around = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return next((outer for outer in around if any(named(outer, name) for name in wanted.keep)), None)


def _adapter(model: PreTrainedModel, config: LoraConfig, found: _Findings, tuned: Checkpoint) -> AdapterContent:
    whole: dict[str, Tensor] = {}
    for path in sorted(found.kept):
        whole |= {f"{KEY_PREFIX}{name}": value for name, value in whole_module(model, tuned, path)}
    tied = _tied_head(model)
    embedding = _path_of(model, model.get_input_embeddings())
    if tied and embedding in found.kept:
        # a copy of one end alone would leave the other end as it was
        found.kept.add(tied)
        whole[f"{KEY_PREFIX}{tied}.weight"] = whole[f"{KEY_PREFIX}{embedding}.weight"]
    names = shortest_names(list(found.updates), model)
    made = written(config, found.updates, names, modules_to_save=sorted(found.kept) or None)
    return AdapterContent(made.config, {**made.state, **whole})


def _tied_head(model: PreTrainedModel) -> str | None:
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    return _path_of(model, head) if tied and head is not None else None


def _path_of(model: nn.Module, wanted: nn.Module) -> str:
    return next(path for path, module in model.named_modules() if module is wanted)


def _left_lines(left: list[str]) -> Iterator[str]:
    if left:
        yield f"left out, though they differ ({len(left)} tensors; --keep MODULE saves one whole, --keep all each):"
        yield from (f"  {name}" for name in left)
