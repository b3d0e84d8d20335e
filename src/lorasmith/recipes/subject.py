"""What a command works on: a base model with adapters, found from a run folder, an adapter folder or a model."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorasmith.attach import WEIGHTS_FILE, is_taken_by_torch, load_adapter, read_class_names
from lorasmith.errors import AdapterError, ModelError
from lorasmith.methods.config import CONFIG_FILE, read_config_fields
from lorasmith.models.checkpoint import Checkpoint
from lorasmith.models.generation_config import read_generation_config
from lorasmith.models.report import LoadReport
from lorasmith.models.tensor_file import read_header
from lorasmith.models.tokenizer import has_tokenizer, load_tokenizer
from lorasmith.recipes.adapter_fit import fitting_config
from lorasmith.recipes.adapter_home import adapter_home
from lorasmith.recipes.base_model import Storage, load_base, open_base
from lorasmith.recipes.reading import read_recipe
from lorasmith.recipes.recipe import Recipe
from lorasmith.recipes.sections import ModelSection, QuantizationSection
from lorasmith.training.run_folder import RunFolder

# what commands call the model without any adapter
BASE = "base"


@dataclass(frozen=True)
class Subject:
    """A base model, how it is held, and folders of adapters by name; the recipe where it comes from a run."""

    base: ModelSection
    storage: Storage
    adapters: dict[str, Path]
    recipe: Recipe | None


@dataclass(frozen=True)
class LoadedSubject:
    """The model with its adapters attached (the first one acts), its tokenizer, and what was loaded."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    report: LoadReport


def find_subject(
    path: str, adapters: Sequence[str] = (), *, base: str | None = None, trust_remote_code: bool = False
) -> Subject:
    """The subject that path (run folder, adapter folder, base model) and further adapters name.

    base names the model where an adapter does not, or another one. Raises AdapterError for a folder that is no adapter.
    """
    folder = Path(path).expanduser()
    given = [*([path] if _is_adapter(folder) else []), *adapters]
    folders = [find_adapter(Path(item).expanduser()) for item in given]
    named = dict(zip(_names(folders), folders))
    run = _run_of(folder)
    if run is not None:
        recipe = read_recipe(run.recipe)
        changes = ({"path": base} if base else {}) | ({"trust_remote_code": True} if trust_remote_code else {})
        section = recipe.model.model_copy(update=changes)
        storage = Storage(recipe.task, recipe.quantization, tuple(recipe.data.labels or ()))
        return Subject(section, storage, named, recipe)
    model = base or (_base_of(folders[0]) if _is_adapter(folder) else path)
    section = ModelSection(path=model, trust_remote_code=trust_remote_code)
    return Subject(section, _storage(folders), named, None)


def load_subject(subject: Subject, device: str) -> LoadedSubject:
    """The model and its adapters in memory; everything that headers show is checked before weights are read."""
    checkpoint = open_base(subject.base)
    configs = {name: fitting_config(folder, checkpoint) for name, folder in subject.adapters.items()}
    tokenizer = tokenizer_of(subject, checkpoint)
    # saved with an adapter whose answers end with tokens of their own
    found = map(read_generation_config, subject.adapters.values())
    generation = next((config for config in found if config is not None), None)
    loaded = load_base(subject.base, subject.storage, device)
    for name, folder in subject.adapters.items():
        load_adapter(loaded.model, folder, name, config=configs[name])
    if generation is not None:
        loaded.model.generation_config = generation
    loaded.model.eval()
    return LoadedSubject(loaded.model, tokenizer, loaded.report)


def tokenizer_of(subject: Subject, checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The tokenizer that was saved with the first adapter that has one, else the base's."""
    home = next((folder for folder in subject.adapters.values() if has_tokenizer(folder)), checkpoint.folder)
    return load_tokenizer(home, trust_remote_code=subject.base.trust_remote_code)


def _is_adapter(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file() or RunFolder(folder).recipe.is_file()


def find_adapter(folder: Path) -> Path:
    """The folder of the adapter that a run folder or adapter folder names; AdapterError where it holds none."""
    found = adapter_home(RunFolder(folder)) if RunFolder(folder).recipe.is_file() else folder
    if not (found / CONFIG_FILE).is_file():
        raise AdapterError(f"{found} holds no adapter ({CONFIG_FILE}); name the folder of a run or of a saved adapter")
    if not (found / WEIGHTS_FILE).is_file():
        raise AdapterError(f"{found} has no {WEIGHTS_FILE}; save the adapter again")
    return found


def _run_of(folder: Path) -> RunFolder | None:
    """The run that folder is, or whose adapter it is."""
    runs = map(RunFolder, (folder, folder.parent, folder.parent.parent))
    return next((run for run in runs if run.recipe.is_file() and folder in (run.path, adapter_home(run))), None)


def _base_of(folder: Path) -> str:
    path = read_config_fields(folder).get("base_model_name_or_path")
    if not path:
        raise ModelError(f"{folder / CONFIG_FILE} does not name its base model; name it with --model")
    return str(path)


def _storage(folders: list[Path]) -> Storage:
    """Task and classes as the first adapter states them, the weights as they are stored."""
    if folders and read_config_fields(folders[0]).get("task_type") == "SEQ_CLS":
        names = read_class_names(folders[0]) or tuple(map(str, range(_classes(folders[0]))))
        return Storage("classification", None, names)
    return Storage("causal", None)


def _classes(folder: Path) -> int:
    """Rows of the classifier that the adapter saved: the last two-dimensional tensor that is no adapter's."""
    tensors = read_header(folder / WEIGHTS_FILE)
    heads = [tensor for name, tensor in tensors.items() if re.search(r"(classifier|score|out_proj)\.weight$", name)]
    if not heads:
        raise AdapterError(f"{folder} is for classification but holds no classifier; name a run folder instead")
    return min(tensor.shape[0] for tensor in heads)


def with_quantization(subject: Subject, name: str | None) -> Subject:
    """The subject with the base held in another format; None leaves it, "none" takes the weights as stored."""
    if name is None:
        return subject
    section = None if name == "none" else QuantizationSection(format=name)
    if section is not None:
        section.scheme()
    storage = Storage(subject.storage.task, section, subject.storage.labels)
    return Subject(subject.base, storage, subject.adapters, subject.recipe)


def _names(folders: list[Path]) -> list[str]:
    """A name for each adapter: its run's or its folder's, changed where no adapter may have it or two are alike."""
    names: list[str] = []
    for folder in folders:
        run = _run_of(folder)
        plain = (run.path if run else folder).name.replace(".", "_") or "adapter"
        if plain == BASE or is_taken_by_torch(plain):
            plain += "-adapter"
        alike = sum(name == plain or name.startswith(f"{plain}-") for name in names)
        names.append(f"{plain}-{alike + 1}" if alike else plain)
    return names
