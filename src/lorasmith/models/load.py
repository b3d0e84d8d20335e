"""Loading a model: checked from its headers, read tensor by tensor, quantized as it arrives.

transformers does the building, the renaming of keys, the tying and the buffers; the reading is ours, since its own
keeps every shard mapped (tensor_file.py). Both ways store the same bytes. On a GPU each tensor goes to the device as it
is read (streaming.py), where it is quantized; elsewhere the finished model is moved.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.auto_factory import _get_model_class

from lorasmith.errors import LorasmithError, ModelError, reason
from lorasmith.models.checkpoint import Checkpoint, open_checkpoint, quantization_of
from lorasmith.models.device import resolve
from lorasmith.models.generation_config import read_generation_config
from lorasmith.models.hub import Source, fetch
from lorasmith.models.placement import tied_keys
from lorasmith.models.quantization_config import QuantizationConfig, torch_dtype
from lorasmith.models.quantizer import LorasmithQuantizer, register
from lorasmith.models.quiet import quiet_transformers
from lorasmith.models.report import LoadReport, report_on
from lorasmith.models.stored import readable, wanted_config
from lorasmith.models.streaming import streamed
from lorasmith.models.tokenizer import has_tokenizer, load_tokenizer
from lorasmith.quantized import Scheme

logger = logging.getLogger(__name__)

Task = Literal["causal", "classification", "encoder"]
TASKS: dict[str, Any] = {
    "causal": AutoModelForCausalLM,
    "classification": AutoModelForSequenceClassification,
    "encoder": AutoModel,
}


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for adapters, its tokenizer (None where the folder has none) and what was loaded."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    report: LoadReport


@dataclass(frozen=True)
class _Wish:
    """What the caller asked for, beside where the model is."""

    task: Task
    scheme: Scheme | None
    dtype: torch.dtype | str
    device: torch.device
    num_labels: int | None
    skip: tuple[str, ...]
    compute_dtype: torch.dtype | None
    seed: int


def load(
    path_or_name: str | Path,
    *,
    task: Task = "causal",
    scheme: Scheme | str | None = None,
    dtype: Literal["auto"] | str | torch.dtype = "auto",
    device: str = "auto",
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
    trust_remote_code: bool = False,
    num_labels: int | None = None,
    skip: Sequence[str] = (),
    compute_dtype: torch.dtype | str | None = None,
    seed: int = 0,
) -> LoadedModel:
    """Load a Hugging Face folder or hub name, its linear layers stored in scheme, or a format's name (None: as is).

    A checkpoint that is quantized already (ours, or bitsandbytes') is taken over byte for byte. dtype is the type of
    what stays dense, "auto" the checkpoint's. skip names linear layers to leave dense. num_labels sizes a
    classification head; a head that the checkpoint lacks is initialised from seed and reported.

    Raises ModelError, or FormatError for a weight that the format cannot hold, in one line; everything that the
    headers show is found before any weight is read.
    """
    scheme = Scheme(scheme) if isinstance(scheme, str) else scheme
    wish = _Wish(task, scheme, dtype, resolve(device), num_labels, tuple(skip), torch_dtype(compute_dtype), seed)
    if task not in TASKS:
        raise ModelError(f"task {task!r} is unknown; choose one of: {', '.join(TASKS)}")
    folder = fetch(Source(path_or_name, revision, token, offline, trust_remote_code))
    checkpoint = open_checkpoint(folder, trust_remote_code=trust_remote_code)
    quantization = wanted_config(checkpoint, wish.scheme, wish.skip, wish.compute_dtype)
    config = _config(checkpoint, wish, trust_remote_code)
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code) if has_tokenizer(folder) else None
    generation = read_generation_config(folder)
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model, info = _build(checkpoint, config, quantization, wish)
        except (LorasmithError, torch.OutOfMemoryError):
            raise
        # what a config of impossible values breaks in transformers
        except (AssertionError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            raise ModelError(f"{folder / 'config.json'}: no model can be made of it: {reason(error)}") from error
    report = _checked(model, info, wish, folder)
    _finish(model, tokenizer, generation, folder)
    return LoadedModel(_moved(model, wish.device), tokenizer, report)


def _config(checkpoint: Checkpoint, wish: _Wish, trust_remote_code: bool) -> PreTrainedConfig:
    extra = {} if wish.num_labels is None else {"num_labels": wish.num_labels}
    try:
        config = AutoConfig.from_pretrained(
            checkpoint.folder, trust_remote_code=trust_remote_code, local_files_only=True, **extra
        )
    # the library of strict configs raises plain Exceptions for values of another kind
    except Exception as error:
        raise ModelError(
            f"{checkpoint.folder / 'config.json'} is not a config that transformers knows: {reason(error)}"
        ) from error
    if type(config) not in TASKS[wish.task]._model_mapping and not _has_code(checkpoint):
        raise ModelError(f"{checkpoint.folder}: a {config.model_type} model cannot be loaded for the task {wish.task}")
    return config


def _has_code(checkpoint: Checkpoint) -> bool:
    return bool(checkpoint.config.get("auto_map"))


def _build(
    checkpoint: Checkpoint, config: PreTrainedConfig, quantization: QuantizationConfig | None, wish: _Wish
) -> tuple[PreTrainedModel, dict[str, Any]]:
    register()
    dtype = _dtype(checkpoint, wish)
    keywords: dict[str, Any] = {
        "config": config,
        "dtype": dtype,
        "ignore_mismatched_sizes": True,
        "output_loading_info": True,
    }
    if quantization_of(checkpoint.config) is not None and quantization is not None:
        if quantization.skip_modules is None:
            quantization.skip_modules = _default_skips(config, wish)
        config.quantization_config = quantization.to_dict()
    elif quantization is not None:
        keywords["quantization_config"] = quantization
    if _has_code(checkpoint):
        logger.info("%s brings its own code: transformers reads it, with its files mapped", checkpoint.folder)
        return TASKS[wish.task].from_pretrained(
            checkpoint.folder, trust_remote_code=True, local_files_only=True, **keywords
        )
    model_class = _get_model_class(config, TASKS[wish.task]._model_mapping)
    # where weights are quantized as they arrive, transformers asks for one after the other
    arriving = "quantization_config" in keywords
    with streamed(readable(checkpoint.tensors), wish.device, one_by_one=arriving) as tensors:
        return model_class.from_pretrained(None, state_dict=tensors, **keywords)


def _default_skips(config: PreTrainedConfig, wish: _Wish) -> list[str]:
    """The linear layers that transformers leaves dense where a bitsandbytes config does not say it."""
    with torch.device("meta"):
        model = TASKS[wish.task].from_config(config)
    return sorted(LorasmithQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules))


def _dtype(checkpoint: Checkpoint, wish: _Wish) -> torch.dtype:
    if wish.dtype != "auto":
        return torch_dtype(wish.dtype) or torch.float32
    dtype = checkpoint.dtype
    if dtype == torch.float16 and wish.device.type == "cpu":
        # float16 products run 10 to 1000 times slower than float32 on a CPU
        logger.info("the checkpoint is float16, which a CPU multiplies slowly; loading it as float32")
        return torch.float32
    return dtype


def _checked(model: PreTrainedModel, info: dict[str, Any], wish: _Wish, folder: Path) -> LoadReport:
    """The report, once nothing is missing that only a checkpoint can give."""
    mismatched = {name: shapes for name, *shapes in sorted(info["mismatched_keys"])}
    tied = tied_keys(model)
    missing = sorted(name for name in info["missing_keys"] if name not in tied)
    lost = [name for name in (*missing, *mismatched) if not _may_be_new(name, model, wish)]
    if lost:
        name = lost[0]
        if name in mismatched:
            stored, expected = (list(shape) for shape in mismatched[name])
            raise ModelError(f"{folder}: {name} has the shape {stored}, config.json asks for {expected}; one is wrong")
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise ModelError(
            f"{folder} lacks {name}{more}; the checkpoint is incomplete, its config.json is another model's, or it was "
            f"made for another task than {wish.task}"
        )
    return report_on(
        model, initialised=tuple(sorted({*missing, *mismatched})), ignored=tuple(sorted(info["unexpected_keys"]))
    )


def _may_be_new(name: str, model: PreTrainedModel, wish: _Wish) -> bool:
    """Whether a parameter may be initialised instead of loaded: a task head, or the pooler that feeds one."""
    if wish.task == "causal":
        return False
    above = model.base_model is not model and not name.startswith(f"{model.base_model_prefix}.")
    return above or "pooler" in name


def _moved(model: nn.Module, device: torch.device) -> PreTrainedModel:
    moved = nn.Module.to(model, device)
    assert isinstance(moved, PreTrainedModel)
    return moved


def _finish(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    generation: GenerationConfig | None,
    folder: Path,
) -> None:
    model.config.name_or_path = model.name_or_path = str(folder)
    if generation is not None and model.can_generate():
        model.generation_config = generation
    if model.config.get_text_config().pad_token_id is None and tokenizer is not None:
        # classification on a decoder looks for the last token that is no padding
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        model.config.get_text_config().pad_token_id = pad
