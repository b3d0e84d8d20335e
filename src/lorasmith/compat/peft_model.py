"""PeftModel: the wrapper that PEFT's users write against."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from huggingface_hub import CommitInfo
from torch import nn
from transformers import PreTrainedModel

from lorasmith.attach import (
    CARD,
    adapter_state,
    attach,
    attach_content,
    content_of,
    load_adapter_state,
    read_adapter,
    save_adapter,
    write_card,
)
from lorasmith.compat.adapted_base import AdaptedBase
from lorasmith.compat.adapter_folder import adapter_folder
from lorasmith.compat.adapter_life import AdapterLife
from lorasmith.compat.adapter_names import most_repeats, named_rows
from lorasmith.compat.base_name import with_base_name
from lorasmith.compat.base_signature import BaseSignature, forward
from lorasmith.compat.load_result import LoadResult
from lorasmith.compat.real_peft import as_peft_sees, real_peft
from lorasmith.compat.renaming import renamed
from lorasmith.errors import AdapterError
from lorasmith.methods import AdapterConfig
from lorasmith.models.hub_upload import Destination, fetch_file, upload
from lorasmith.models.narrow_linear import narrow_linears

# wrappers by the task that they are for
WRAPPERS: dict[str, type["PeftModel"]] = {}


class PeftModel(AdapterLife):
    """A model with adapters; its attributes are the base model's wherever it has none of its own.

    Once peft is imported, `isinstance(model, peft.PeftModel)` holds too: Trainer and TRL know adapters by nothing else.
    """

    # Trainer reads this where peft is absent: save the state dict, which holds only adapters
    _hf_peft_config_loaded = True

    def __init_subclass__(cls, task: str | None = None) -> None:
        if task is not None:
            WRAPPERS[task] = cls

    @classmethod
    def for_task(cls, config: AdapterConfig) -> type["PeftModel"]:
        """The wrapper for the task that config names."""
        return WRAPPERS.get(str(config.task_type), PeftModel)

    def __init__(
        self,
        model: nn.Module,
        peft_config: AdapterConfig,
        adapter_name: str = "default",
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
    ) -> None:
        super().__init__()
        model = bare_model(model)
        self.base_model = AdaptedBase(model)
        attach(model, with_base_name(peft_config, model), adapter_name, autocast_adapter_dtype)

    @classmethod
    def around(cls, model: nn.Module) -> Self:
        """The wrapper of a model that carries adapters already."""
        wrapper = cls.__new__(cls)
        nn.Module.__init__(wrapper)
        wrapper.base_model = AdaptedBase(model)
        return wrapper

    forward = BaseSignature(forward)

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
        """Write every adapter (or the selected ones) as PEFT does, each with its README.md; pickles are refused."""
        if not safe_serialization:
            raise AdapterError("safe_serialization=False would write a pickle, which can run code; leave it at True")
        if not is_main_process:
            return
        for name in selected_adapters or list(self.peft_config):
            self.adapters.check(name)
            _note_class(self.peft_config[name], self.get_base_model())
            home = save_adapter(self.get_base_model(), save_directory, name, save_embedding_layers)  # type: ignore[arg-type]
            write_card(home, content_of(self.adapters, name))

    @classmethod
    def from_pretrained(
        cls,
        model: nn.Module,
        model_id: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: AdapterConfig | None = None,
        autocast_adapter_dtype: bool = True,
        **loading: Any,
    ) -> "PeftModel":
        """model with the adapter from a folder or hub name attached; it trains only if is_trainable.

        config is used instead of the folder's. loading is what load_adapter takes.
        """
        model = bare_model(model)
        kind = _load(model, model_id, adapter_name, is_trainable, autocast_adapter_dtype, config, **loading)
        wrapper = cls.for_task(kind).around(model)
        wrapper.eval()
        return wrapper

    def load_adapter(
        self,
        model_id: str | Path,
        adapter_name: str,
        is_trainable: bool = False,
        autocast_adapter_dtype: bool = True,
        **loading: Any,
    ) -> LoadResult:
        """Load one more adapter; the active ones stay active. Loading over an existing one replaces its tensors.

        key_mapping renames keys by expression; ignore_mismatched_sizes leaves tensors of another shape at their start,
        with a warning that names them; revision, subfolder, token, cache_dir, local_files_only and force_download say
        where the adapter is. What PEFT takes beside these changes nothing: torch_device and device_map, since an
        adapter goes where its layers are, and low_cpu_mem_usage, since its tensors are made once.
        """
        before = self.active_adapters
        _load(self.get_base_model(), model_id, adapter_name, is_trainable, autocast_adapter_dtype, **loading)
        self.adapters.activate(before or adapter_name)
        # what is missing or unexpected is an error
        return LoadResult([], [])

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The whole state with real peft at hand, which selects from it; else the active adapter in PEFT's keys."""
        if real_peft() is not None or args or kwargs:
            return super().state_dict(*args, **kwargs)
        return adapter_state(self.get_base_model(), self.active_adapter)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a whole state, or what state_dict() gave without real peft: the active adapter in PEFT's keys."""
        if set(state_dict) != set(adapter_state(self.get_base_model(), self.active_adapter)):
            return super().load_state_dict(state_dict, strict, assign)
        load_adapter_state(self.get_base_model(), state_dict, self.active_adapter)
        return LoadResult([], [])

    def create_or_update_model_card(self, output_dir: str | Path) -> None:
        """Write output_dir's README.md about the active adapter; a page of somebody's own keeps its text."""
        write_card(output_dir, content_of(self.adapters, self.active_adapter))

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        **saving: Any,
    ) -> CommitInfo:
        """Upload what save_pretrained writes, and nothing else, to a repository that is made where there is none.

        saving is for save_pretrained. A page that is there keeps its text. Raises InputError for a name that the hub
        does not take, RunError where it does not answer or refuses.
        """
        place = Destination(repo_id, private, token, revision, create_pr, commit_message, commit_description)
        with TemporaryDirectory() as folder:
            fetch_file(place, CARD, Path(folder))
            self.save_pretrained(folder, **saving)
            if "default" in self.peft_config:
                # the page is called by the repository's name, not the temporary folder's
                write_card(folder, content_of(self.adapters, "default"), name=repo_id)
            return upload(Path(folder), place)

    # --- passing for PEFT's and transformers' own

    def get_output_embeddings(self) -> Any:
        """The output head; TRL refuses an adapted one, which it would leave untrained, by PEFT's class of it."""
        return as_peft_sees(self.get_base_model().get_output_embeddings())

    def generate(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Generate with the active adapters, or with an adapter of its own for each row, "__base__" for none."""
        model = self.get_base_model()
        with ExitStack() as blocks:
            blocks.enter_context(narrow_linears(model))
            if adapter_names is not None:
                repeats = most_repeats(model, kwargs)
                blocks.enter_context(named_rows(model, adapter_names, args, kwargs, repeats))
            return model.generate(*args, **kwargs)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        peft = real_peft()
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


def _load(
    model: nn.Module,
    model_id: str | Path,
    name: str,
    trainable: bool,
    float32: bool,
    config: AdapterConfig | None = None,
    *,
    key_mapping: Mapping[str, str] | None = None,
    ignore_mismatched_sizes: bool = False,
    **hub: Any,
) -> AdapterConfig:
    """Attach the adapter at model_id; returns its config."""
    folder = adapter_folder(model_id, **hub)
    content = read_adapter(folder, copy.deepcopy(config))
    content.config.inference_mode = not trainable
    content = replace(content, state=renamed(content.state, key_mapping))
    try:
        attach_content(model, content, name, float32, skip_mismatched=ignore_mismatched_sizes)
    except AdapterError as error:
        raise AdapterError(f"{folder}: {error}") from None
    return content.config


def _blank(kind: type[PeftModel]) -> PeftModel:
    model = kind.__new__(kind)
    nn.Module.__init__(model)
    return model


def _note_class(config: AdapterConfig, model: nn.Module) -> None:
    # as PEFT does, for AutoPeftModel: without a task nothing else in the file says what the base is
    if config.task_type is None and isinstance(model, PreTrainedModel):
        config.auto_mapping = {"base_model_class": type(model).__name__, "parent_library": type(model).__module__}
