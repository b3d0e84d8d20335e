"""The settings of an adapter: data only, in PEFT's names, read from and written to its JSON."""

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Self

from lorasmith.atomic import write_text
from lorasmith.errors import AdapterError, AttachError
from lorasmith.methods.kinds import require_kinds
from lorasmith.methods.names import PeftType, TaskType

CONFIG_FILE = "adapter_config.json"
# written by PEFT for its own use; nothing here reads them
_FOREIGN = {"peft_version"}
_PLACE = re.compile(r"(first|last)-(half|[1-9]\d*)|\d+-\d+")

log = logging.getLogger(__name__)


@dataclass
class AdapterConfig:
    """Fields that every method has.

    Raises AdapterError for an unknown task type, and for a value of another kind than its field's.
    """

    METHOD: ClassVar[str]
    # whether a classifier's new head trains beside the adapter without being asked to, as in PEFT
    trains_heads: ClassVar[bool] = True
    # fields that PEFT's class has not, and would warn of: they are written only where they say something
    OURS: ClassVar[tuple[str, ...]] = ()
    # fields that are there for PEFT's files and scripts, and that nothing reads: a recipe cannot give them
    NEVER_READ: ClassVar[tuple[str, ...]] = ()

    task_type: TaskType | str | None = None
    peft_type: PeftType | str | None = None
    auto_mapping: dict[str, Any] | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    inference_mode: bool = False
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        require_kinds(self)
        self.peft_type = PeftType(self.METHOD) if self.METHOD in PeftType.__members__ else self.METHOD
        if isinstance(self.modules_to_save, str):
            raise AttachError(f"modules_to_save={self.modules_to_save!r} must be a list: [{self.modules_to_save!r}]")
        if self.task_type is not None:
            known = [task.value for task in TaskType]
            name = self.task_type.value if isinstance(self.task_type, Enum) else str(self.task_type)
            if name not in known:
                raise AdapterError(f"task_type={name!r} is not one of {', '.join(known)}")
            self.task_type = TaskType(name)

    @property
    def is_prompt_learning(self) -> bool:
        """Whether the method adds virtual tokens, as PEFT asks it."""
        return False

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON takes them: enums by value, sets sorted."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """A config from the fields of a file; unknown ones are dropped with a warning that names them."""
        known = {field.name for field in fields(cls)}
        unknown = {name: value for name, value in values.items() if name not in known | _FOREIGN}
        told = sorted(name for name, value in unknown.items() if value not in (None, False, {}, []))
        if told:
            log.warning("%s: fields from another version are ignored: %s", cls.__name__, ", ".join(told))
        return cls(**{name: value for name, value in values.items() if name in known})

    def save_pretrained(self, folder: str | Path) -> None:
        """Write adapter_config.json into folder."""
        ours = (*self.OURS, "layers")
        values = {name: value for name, value in self.to_dict().items() if value is not None or name not in ours}
        write_text(Path(folder) / CONFIG_FILE, json.dumps(values, indent=2, sort_keys=True) + "\n")


def read_config_fields(folder: str | Path) -> dict[str, Any]:
    """The fields of folder's adapter_config.json, with peft_type among them.

    Raises AdapterError where the file is missing, is no JSON object, or names no method.
    """
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise AdapterError(f"{path} does not exist; name a folder that holds a saved adapter")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AdapterError(f"{path} is no valid JSON ({error}); save the adapter again") from None
    if not isinstance(values, dict) or not values.get("peft_type"):
        raise AdapterError(f"{path} has no field peft_type; it must name the method, such as LORA")
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, set):
        return sorted(value)
    return value


@dataclass
class TargetedConfig(AdapterConfig):
    """Fields of the methods that are placed on modules.

    target_modules is a list of names (a module matches by its whole path or the end of it), a regular expression that
    must match the whole path, or one word for a part of the model: "all-linear", "attention", "mlp", "embeddings",
    "head" or "norms"; None takes PEFT's choice for the model type. layers confines the method to layers by their place:
    "first-half", "last-half", "first-4", "last-2" or "3-7". Both are saved as the names and numbers that were found.
    Raises AttachError for a place that is none of these.
    """

    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    # in no file once it is placed: PEFT does not know it
    layers: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Iterable):
                raise AttachError(f"{name}={value!r} must be names, an expression, or a word such as all-linear")
        if self.layers is not None and not _PLACE.fullmatch(self.layers):
            raise AttachError(f"layers={self.layers!r} is none of first-half, last-half, first-N, last-N, N-N")

    @property
    def parameter_names(self) -> list[str] | None:
        """Bare parameters that are adapted too; None leaves it to "all-linear", which means stacks of experts too."""
        return None

    @property
    def ensures_tying(self) -> bool:
        """Whether the user asked that layers which share a weight go on sharing it."""
        return False

    def note_parameters(self, names: list[str]) -> None:
        """Write down which bare parameters "all-linear" was found to mean."""
        raise NotImplementedError(f"{type(self).__name__} has no field for bare parameters")

    @property
    def patterns(self) -> dict[str, Mapping[str, float]]:
        """Fields that give modules values of their own, each by a name or expression of the module."""
        return {}

    @property
    def layer_numbers(self) -> list[int] | None:
        """The numbers of the layers that the method is confined to, None for all."""
        return None

    @property
    def layer_lists(self) -> list[str]:
        """Names of the lists that the layer numbers count in; empty for any list."""
        return []


@dataclass
class LayeredConfig(TargetedConfig):
    """A targeted method that can be confined to some layers: layers_to_transform counts in layers_pattern."""

    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None

    @property
    def layer_numbers(self) -> list[int] | None:
        chosen = self.layers_to_transform
        return [chosen] if isinstance(chosen, int) else chosen or None

    @property
    def layer_lists(self) -> list[str]:
        pattern = self.layers_pattern
        return [pattern] if isinstance(pattern, str) else pattern or []


@dataclass
class PromptLearningConfig(AdapterConfig):
    """Fields of the methods that put virtual tokens, or their keys and values, before the input.

    What is left at None is filled in from the model when the method is placed. num_transformer_submodules is 2 for a
    sequence-to-sequence task. Raises AttachError without virtual tokens.
    """

    num_virtual_tokens: int | None = None
    token_dim: int | None = None
    num_transformer_submodules: int | None = None
    num_attention_heads: int | None = None
    num_layers: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.num_virtual_tokens or self.num_virtual_tokens < 1:
            raise AttachError(
                f"num_virtual_tokens={self.num_virtual_tokens}: give the number of virtual tokens, say 20"
            )

    @property
    def is_prompt_learning(self) -> bool:
        return True

    @property
    def virtual_tokens(self) -> int:
        """Virtual tokens before every input."""
        assert self.num_virtual_tokens is not None
        return self.num_virtual_tokens
