"""PeftModel: the wrapper that PEFT's users write against."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import nn
from transformers import PreTrainedModel

from lorasmith.attach import (
    Adapters,
    adapter_state,
    adapters_of,
    attach,
    load_adapter,
    load_adapter_state,
    merge_and_unload,
    merge_in_place,
    save_adapter,
    unload,
    unmerge,
)
from lorasmith.compat.adapted_base import AdaptedBase
from lorasmith.compat.adapter_folder import adapter_folder
from lorasmith.compat.base_signature import BaseSignature, forward
from lorasmith.errors import AdapterError, AttachError
from lorasmith.methods import AdapterConfig, config_from_fields, read_config_fields
from lorasmith.models.narrow_linear import narrow_linears
from lorasmith.quantized import count_parameters


class LoadResult(NamedTuple):
    """What load_state_dict returns, as torch has it."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class PeftModel(nn.Module):
    """A model with adapters; its attributes are the base model's wherever it has none of its own.

    Once peft is imported, `isinstance(model, peft.PeftModel)` holds too: Trainer and TRL know adapters by nothing else.
    """

    # Trainer reads this where peft is absent: save the state dict, which holds only adapters
    _hf_peft_config_loaded = True
    # wrappers by the task that they are for
    _by_task: ClassVar[dict[str, type["PeftModel"]]] = {}

    def __init_subclass__(cls, task: str) -> None:
        PeftModel._by_task[task] = cls

    @classmethod
    def for_task(cls, config: AdapterConfig) -> type["PeftModel"]:
        """The wrapper for the task that config names."""
        return PeftModel._by_task.get(str(config.task_type), PeftModel)

    def __init__(
        self,
        model: nn.Module,
        peft_config: AdapterConfig,
        adapter_name: str = "default",
        autocast_adapter_dtype: bool = True,
        **unused: Any,
    ) -> None:
        super().__init__()
        model = bare_model(model)
        self.base_model = AdaptedBase(model)
        attach(model, _with_base_name(peft_config, model), adapter_name, autocast_adapter_dtype)

    @classmethod
    def around(cls, model: nn.Module) -> Self:
        """The wrapper of a model that carries adapters already."""
        wrapper = cls.__new__(cls)
        nn.Module.__init__(wrapper)
        wrapper.base_model = AdaptedBase(model)
        return wrapper

    forward = BaseSignature(forward)

    # --- what stands where

    def get_base_model(self) -> Any:
        """The model inside, adapters and all."""
        return self.base_model.model

    @property
    def adapters(self) -> Adapters:
        """The book of the adapters."""
        return adapters_of(self.base_model.model)

    @property
    def peft_config(self) -> dict[str, AdapterConfig]:
        """Configs by adapter."""
        return self.adapters.configs

    @property
    def active_adapters(self) -> list[str]:
        """Names of the adapters that act."""
        return list(self.adapters.active)

    @property
    def active_adapter(self) -> str:
        """Name of the adapter that acts (the first, of several)."""
        if not self.adapters.active:
            raise AttachError("no adapter is active; choose one with set_adapter")
        return self.adapters.active[0]

    @property
    def active_peft_config(self) -> AdapterConfig:
        """Config of the active adapter."""
        return self.peft_config[self.active_adapter]

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """(trainable, all) parameters, counted as elements of the dense weights."""
        count = count_parameters(self)
        return count.trainable, count.total

    def print_trainable_parameters(self) -> None:
        """Print how many parameters train, in PEFT's words."""
        trainable, total = self.get_nb_trainable_parameters()
        share = 100 * trainable / total
        print(f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {share:.4f}")

    # --- living with adapters

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Let one adapter (or several) act, and train unless inference_mode."""
        self.adapters.activate(adapter_name, trainable=not inference_mode)

    def add_adapter(
        self, adapter_name: str, peft_config: AdapterConfig, low_cpu_mem_usage: bool = False, **unused: Any
    ) -> None:
        """Attach one more adapter; the active ones stay active."""
        before = self.active_adapters
        attach(self.get_base_model(), _with_base_name(peft_config, self.get_base_model()), adapter_name)
        self.adapters.activate(before or adapter_name)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove one adapter."""
        self.adapters.remove(adapter_name)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The bare base model for as long as the block lasts."""
        with self.adapters.disabled():
            yield

    def enable_adapters(self) -> None:
        """Switch the adapters on."""
        self.adapters.enable(True)

    def disable_adapters(self) -> None:
        """Switch the adapters off."""
        self.adapters.enable(False)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge into a dense base in place; unmerge_adapter restores every bit."""
        merge_in_place(self.get_base_model(), adapter_names)

    def unmerge_adapter(self) -> None:
        """Undo merge_adapter."""
        unmerge(self.get_base_model())

    def merge_and_unload(
        self,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
        dtype: torch.dtype | None = None,
    ) -> nn.Module:
        """The dense model with the active adapters merged; a quantized base becomes dense, never requantized."""
        return merge_and_unload(self.get_base_model(), adapter_names, dtype)

    def unload(self) -> nn.Module:
        """The base model without adapters."""
        return unload(self.get_base_model())

    # --- files

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        selected_adapters: list[str] | None = None,
        save_embedding_layers: bool | str = "auto",
        is_main_process: bool = True,
        **unused: Any,
    ) -> None:
        """Write every adapter (or the selected ones) as PEFT does; pickles are refused."""
        if not safe_serialization:
            raise AdapterError("safe_serialization=False would write a pickle, which can run code; leave it at True")
        if not is_main_process:
            return
        for name in selected_adapters or list(self.peft_config):
            self.adapters.check(name)
            _note_class(self.peft_config[name], self.get_base_model())
            save_adapter(self.get_base_model(), save_directory, name, save_embedding_layers)  # type: ignore[arg-type]

    @classmethod
    def from_pretrained(
        cls,
        model: nn.Module,
        model_id: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: AdapterConfig | None = None,
        autocast_adapter_dtype: bool = True,
        **hub: Any,
    ) -> "PeftModel":
        """model with the adapter from a folder or hub name attached; it trains only if is_trainable."""
        folder = adapter_folder(model_id, **hub)
        model = bare_model(model)
        chosen = config or config_from_fields(read_config_fields(folder))
        load_adapter(model, folder, adapter_name, is_trainable, autocast_adapter_dtype)
        wrapper = cls.for_task(chosen).around(model)
        wrapper.eval()
        return wrapper

    def load_adapter(
        self,
        model_id: str | Path,
        adapter_name: str,
        is_trainable: bool = False,
        autocast_adapter_dtype: bool = True,
        **hub: Any,
    ) -> None:
        """Load one more adapter; the active ones stay active. Loading over an existing one replaces its tensors."""
        folder = adapter_folder(model_id, **hub)
        before = self.active_adapters
        load_adapter(self.get_base_model(), folder, adapter_name, is_trainable, autocast_adapter_dtype)
        self.adapters.activate(before or adapter_name)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The whole state with real peft at hand, which selects from it; else the active adapter in PEFT's keys."""
        if _real_peft() is not None or args or kwargs:
            return super().state_dict(*args, **kwargs)
        return adapter_state(self.get_base_model(), self.active_adapter)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a whole state, or what state_dict() gave without real peft: the active adapter in PEFT's keys."""
        if set(state_dict) != set(adapter_state(self.get_base_model(), self.active_adapter)):
            return super().load_state_dict(state_dict, strict, assign)
        load_adapter_state(self.get_base_model(), state_dict, self.active_adapter)
        return LoadResult([], [])

    def push_to_hub(self, *args: Any, **kwargs: Any) -> None:
        """Refused: the base's own method would upload the base. Save the adapter and upload its folder."""
        raise AdapterError("push_to_hub is not built yet; use save_pretrained and upload the folder")

    # --- passing for PEFT's and transformers' own

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate with the active adapters."""
        with narrow_linears(self.get_base_model()):
            return self.get_base_model().generate(*args, **kwargs)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        peft = _real_peft()
        mine = type(self)
        return mine if peft is None else getattr(peft, mine.__name__, getattr(peft, "PeftModel", mine))

    def __reduce__(self) -> tuple[Any, ...]:
        # pickle compares __class__ with the type
        return _blank, (type(self),), self.__dict__

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":
                raise
            return getattr(self.base_model.model, name)


def bare_model(model: nn.Module) -> nn.Module:
    """The model inside a PeftModel, or model itself: wrappers are not nested, adapters share one book."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _real_peft() -> ModuleType | None:
    """The real peft, if something has imported it."""
    return sys.modules.get("peft")


def _blank(kind: type[PeftModel]) -> PeftModel:
    model = kind.__new__(kind)
    nn.Module.__init__(model)
    return model


def _with_base_name(config: AdapterConfig, model: nn.Module) -> AdapterConfig:
    # PEFT writes the base's name into the config that it was given
    if config.base_model_name_or_path is None:
        config.base_model_name_or_path = getattr(model, "name_or_path", None) or None
    return config


def _note_class(config: AdapterConfig, model: nn.Module) -> None:
    # as PEFT does, for AutoPeftModel: without a task nothing else in the file says what the base is
    if config.task_type is None and isinstance(model, PreTrainedModel):
        config.auto_mapping = {"base_model_class": type(model).__name__, "parent_library": type(model).__module__}
