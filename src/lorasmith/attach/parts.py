"""Parts of a model that are named by a word, and layers by their place: what recipes say instead of module names."""

import re
from collections.abc import Callable, Iterable

from torch import nn
from transformers import PreTrainedModel

from lorasmith.attach.tree import bare, base_modules, is_linear
from lorasmith.errors import AttachError
from lorasmith.methods import layer_number
from lorasmith.models.families import ATTENTION_WORDS, HEADS, MIXER_WORDS, ROUTERS

ALL_LINEAR = "all-linear"


def part(model: nn.Module, word: object, classifies: bool) -> list[str] | None:
    """Paths of the modules that word means in model; None where it is no word, or the path of a module of its own.

    classifies says that a head of classes stands on top, which is trained whole beside the method. Raises AttachError
    where the model has no such part.
    """
    if not isinstance(word, str) or word not in PARTS or word in dict(base_modules(model)):
        return None
    paths = PARTS[word](model, classifies)
    if not paths:
        raise AttachError(f"target_modules={word!r}: {type(model).__name__} has no such part; name its modules")
    return paths


def numbered_layers(model: nn.Module, lists: list[str]) -> int:
    """How many layers model has in its longest list (of those named, if any are)."""
    numbers = [layer_number(f"{path}.", lists) for path, _ in base_modules(model)]
    return max((number for number in numbers if number is not None), default=-1) + 1


def placed_layers(place: str, count: int) -> list[int]:
    """The numbers of the layers at place among count: first-half, last-half, first-4, last-2 or 3-7 (both inclusive).

    An odd count's middle layer belongs to the last half. Raises AttachError where there are not so many layers.
    """
    end, _, size = place.partition("-")
    if end in ("first", "last"):
        wanted = (count // 2 if end == "first" else count - count // 2) if size == "half" else int(size)
        numbers = range(wanted) if end == "first" else range(count - wanted, count)
    else:
        numbers = range(int(end), int(size) + 1)
    if not numbers or numbers[0] < 0 or numbers[-1] >= count:
        raise AttachError(f"layers={place!r}: the model has {count} layers, numbered from 0")
    return list(numbers)


def shortest_names(paths: Iterable[str], model: nn.Module, numbers: list[int] | None = None) -> list[str]:
    """Ends of paths, each as short as can be, that mean exactly paths among the modules of the numbered layers."""
    chosen = set(paths)
    meant: dict[str, set[str]] = {}
    for path, _ in base_modules(model):
        if path and (numbers is None or layer_number(path, []) in numbers):
            for end in _ends_of(path):
                meant.setdefault(end, set()).add(path)
    return sorted({next(end for end in _ends_of(path) if meant[end] <= chosen) for path in chosen})


def _ends_of(path: str) -> list[str]:
    # the shortest first; none begins with a number, whose list says what it counts
    parts = path.split(".")
    starts = [start for start in reversed(range(len(parts))) if not start or not parts[start].isdigit()]
    return [".".join(parts[start:]) for start in starts]


def _all_linear(model: nn.Module, classifies: bool) -> list[str]:
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    on_top = classifies and isinstance(model, PreTrainedModel)
    return [
        path
        for path, module in base_modules(model)
        if is_linear(module) and (head is None or module is not head) and not (on_top and path.split(".")[0] in HEADS)
    ]


def _attention(model: nn.Module, classifies: bool) -> list[str]:
    return [path for path in _linear_in_layers(model) if _under(model, path, ATTENTION_WORDS)]


def _mlp(model: nn.Module, classifies: bool) -> list[str]:
    apart = (*ATTENTION_WORDS, *MIXER_WORDS)
    paths = [path for path in _linear_in_layers(model) if not _under(model, path, apart)]
    return [path for path in paths if path.rpartition(".")[2] not in ROUTERS]


def _linear_in_layers(model: nn.Module) -> list[str]:
    found = [path for path, module in base_modules(model) if is_linear(module)]
    return [path for path in found if re.search(r"(^|\.)\d+\.", path)]


def _under(model: nn.Module, path: str, words: tuple[str, ...]) -> bool:
    """Whether a module around the layer at path, within the numbered one, is called or made by one of words."""
    parts = path.split(".")
    outermost = next(index for index, part in enumerate(parts) if part.isdigit())
    for end in range(outermost + 2, len(parts)):
        around = bare(model.get_submodule(".".join(parts[:end])))[0]
        said = f"{parts[end - 1]} {type(around).__name__}".lower()
        if any(word in said for word in words):
            return True
    return False


def _embeddings(model: nn.Module, classifies: bool) -> list[str]:
    embedding = model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None
    return [path for path, module in base_modules(model) if embedding is not None and module is embedding]


def _head(model: nn.Module, classifies: bool) -> list[str]:
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    return [path for path, module in base_modules(model) if (head is not None and module is head) or path in HEADS]


def _norms(model: nn.Module, classifies: bool) -> list[str]:
    return [path for path, module in base_modules(model) if _is_norm(bare(module)[0])]


def _is_norm(module: nn.Module) -> bool:
    own = list(module.parameters())
    return "norm" in type(module).__name__.lower() and bool(own) and all(parameter.dim() == 1 for parameter in own)


PARTS: dict[str, Callable[[nn.Module, bool], list[str]]] = {
    ALL_LINEAR: _all_linear,
    "attention": _attention,
    "mlp": _mlp,
    "embeddings": _embeddings,
    "head": _head,
    "norms": _norms,
}
"""The words, and how their modules are found: by what transformers' families have in common, not by their names."""
