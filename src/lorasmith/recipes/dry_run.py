"""What `train --dry-run` prints: the resolved recipe, what trains where, the memory, the findings."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from lorasmith.attach import Adapters, adapters_of, base_modules
from lorasmith.attach.tree import bare
from lorasmith.methods import Prefix
from lorasmith.quantized import count_parameters
from lorasmith.recipes.prepare import Prepared, prepare
from lorasmith.recipes.reading import recipe_yaml
from lorasmith.recipes.recipe import Recipe


def dry_run_lines(recipe: Recipe) -> Iterator[str]:
    """Lines for people about the run that recipe would be; no weight is read and nothing is written."""
    prepared = prepare(recipe)
    yield recipe_yaml(prepared.recipe).rstrip()
    yield ""
    yield from prepared.dataset.lines
    yield ""
    yield from module_lines(prepared.model)
    yield ""
    yield from _memory_lines(prepared)
    yield from (str(finding) for finding in prepared.findings)


@dataclass(frozen=True)
class Row:
    """What trains at one place: where, how large what it stands on is, what it is, and how many parameters."""

    place: str
    size: str
    what: str
    count: int


def module_lines(model: nn.Module) -> Iterator[str]:
    """A line for each place where something trains, with its kind and sizes, and the sum."""
    rows = list(_rows(adapters_of(model)))
    widths = [
        max((len(text) for text in texts), default=0) for texts in zip(*((r.place, r.size, r.what) for r in rows))
    ]
    for row in rows:
        texts = (f"{text:<{width}}" for text, width in zip((row.place, row.size, row.what), widths, strict=True))
        yield f"{'  '.join(texts)}  {row.count:>12,} trainable"
    yield f"{len(rows)} modules; {count_parameters(model)}"


def _rows(book: Adapters) -> Iterator[Row]:
    seen: set[int] = set()
    for name in book.active:
        for path, site in book.sites(name):
            size = f"{site.layer.out_features} x {site.layer.in_features}"
            yield Row(path, size, site.describe(), _count(site.parameters(), seen))
    for path, saved in book.saved_modules():
        yield Row(path, type(saved.original_module).__name__, "trained whole", _count(saved.acting.parameters(), seen))
    in_place = {id(parameter) for name in book.active for parameter in book.base_tensors.parameters(name)}
    for path, module in base_modules(book.model):
        base, _ = bare(module)
        own = {name: p for name, p in base.named_parameters(recurse=False) if id(p) in in_place - seen}
        if own:
            sizes = ", ".join(" x ".join(map(str, p.shape)) for p in own.values())
            yield Row(path, sizes, f"{' and '.join(own)} in place", _count(own.values(), seen))
    prompt = None if book.prompted is None else book.prompted.prompt
    if prompt is not None:
        where = "every attention layer" if isinstance(prompt, Prefix) else "input"
        yield Row(
            where, " x ".join(map(str, prompt.stored().shape)), prompt.describe(), _count(prompt.parameters(), seen)
        )


def _count(parameters: Iterable[nn.Parameter], seen: set[int]) -> int:
    """Elements of those that train and were not counted at another place, which shares them."""
    own = [parameter for parameter in parameters if parameter.requires_grad and id(parameter) not in seen]
    seen |= {id(parameter) for parameter in own}
    return sum(parameter.numel() for parameter in own)


def _memory_lines(prepared: Prepared) -> Iterator[str]:
    if prepared.plan is None:
        yield "memory of a training step: not predicted; a note below says why"
        return
    yield f"predicted memory of a training step on {prepared.plan.device}:"
    yield from prepared.plan.lines()
