"""The base model that a recipe's model section names: its folder, its skeleton on the meta device, its weights."""

import os
from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from lorasmith.errors import ModelError, RecipeError, reason
from lorasmith.models.checkpoint import Checkpoint, open_checkpoint
from lorasmith.models.hub import Source, fetch
from lorasmith.models.load import LoadedModel, load
from lorasmith.models.placement import dense_reasons, replace_linears_, require_skips
from lorasmith.models.stored import wanted_config
from lorasmith.quantized import Scheme
from lorasmith.recipes.sections import ModelSection, QuantizationSection, Task

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}
_CLASSES = {"causal": AutoModelForCausalLM, "classification": AutoModelForSequenceClassification}


@dataclass(frozen=True)
class Storage:
    """How a base model is to be held: task, scheme (None: as stored), layers left dense, classes of a classifier."""

    task: Task
    quantization: QuantizationSection | None
    labels: tuple[str, ...] = ()

    @property
    def scheme(self) -> Scheme | None:
        """The scheme of the quantized layers."""
        return self.quantization.scheme() if self.quantization else None

    @property
    def skip(self) -> tuple[str, ...]:
        """Layers that stay dense on request."""
        return tuple(self.quantization.skip or ()) if self.quantization else ()


def open_base(section: ModelSection) -> Checkpoint:
    """The checked headers of the base's folder, downloaded first where it is a hub name. Reads no weight."""
    source = Source(section.path, section.revision, hub_token(section), section.offline, section.trust_remote_code)
    return open_checkpoint(fetch(source), trust_remote_code=section.trust_remote_code)


def hub_token(section: ModelSection) -> str | None:
    """The hub token from the environment variable that the section names."""
    if section.token_env is None:
        return None
    if section.token_env not in os.environ:
        raise RecipeError(f"model.token_env={section.token_env}: there is no such environment variable; set it")
    return os.environ[section.token_env]


def skeleton(checkpoint: Checkpoint, section: ModelSection, storage: Storage, device: torch.device) -> PreTrainedModel:
    """The base on the meta device, its layers in the scheme that they will have: shapes without a weight.

    device is where the weights will be. Raises ModelError for a config that transformers does not know.
    """
    labels = {"num_labels": len(storage.labels)} if storage.labels else {}
    dtype = model_dtype(section, checkpoint, device)
    options = {"trust_remote_code": section.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True, **options, **labels)
        with torch.device("meta"):
            model = _CLASSES[storage.task].from_config(config, dtype=dtype, **options)
    # whatever a config of impossible values breaks, in transformers or in code of its own
    except Exception as error:
        raise ModelError(
            f"{checkpoint.folder / 'config.json'}: no model for {storage.task}: {reason(error)}"
        ) from error
    if storage.task == "causal":
        _require_shapes(model, checkpoint)
    wanted = wanted_config(checkpoint, storage.scheme, storage.skip, None)
    if wanted is not None:
        require_skips(model, storage.skip)
        dense = dense_reasons(model, wanted.skip_modules or ())
        replace_linears_(model, list(dense), wanted.scheme, model.dtype)
    return model


def _require_shapes(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """Raise ModelError for a dense tensor whose shape is not the model's; what is stored under other names is left."""
    for name, parameter in model.named_parameters():
        stored = checkpoint.tensors.get(name)
        if stored is not None and stored.is_floating_point() and stored.shape != tuple(parameter.shape):
            raise ModelError(
                f"{checkpoint.folder}: {name} has the shape {list(stored.shape)}, config.json asks for "
                f"{list(parameter.shape)}; one is wrong"
            )


def model_dtype(section: ModelSection, checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """The type of what stays dense: asked for, or the checkpoint's own, but never float16 on a CPU."""
    if section.dtype != "auto":
        return DTYPES[section.dtype]
    slow = checkpoint.dtype is torch.float16 and device.type == "cpu"
    return torch.float32 if slow else checkpoint.dtype


def load_base(
    section: ModelSection, storage: Storage, device: str, *, dtype: torch.dtype | None = None, seed: int = 0
) -> LoadedModel:
    """The base with its weights; dtype overrules the section's."""
    return load(
        section.path,
        task=storage.task,
        scheme=storage.scheme,
        dtype=dtype or ("auto" if section.dtype == "auto" else DTYPES[section.dtype]),
        device=device,
        revision=section.revision,
        token=hub_token(section),
        offline=section.offline,
        trust_remote_code=section.trust_remote_code,
        num_labels=len(storage.labels) or None,
        skip=storage.skip,
        seed=seed,
    )


def report_lines(loaded: LoadedModel) -> list[str]:
    """What was loaded, without the warnings: those were logged already."""
    return [line for line in loaded.report.lines() if not line.startswith("warning")]
