"""What `train --dry-run` prints: the resolved recipe, the adapted modules, the memory, the findings."""

from collections.abc import Iterator

from torch import nn

from lorasmith.attach import adapters_of
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


def module_lines(model: nn.Module) -> Iterator[str]:
    """A line for each adapted module with its shape and what trains there, and the sum."""
    book = adapters_of(model)
    rows = [
        (path, f"{site.layer.out_features} x {site.layer.in_features}", _elements(site.parameters()))
        for name in book.active
        for path, site in book.sites(name)
    ]
    for path, saved in book.saved_modules():
        rows.append((path, "trained whole", _elements(p for p in saved.parameters() if p.requires_grad)))
    width = max((len(path) for path, _, _ in rows), default=0)
    for path, shape, count in rows:
        yield f"{path:<{width}}  {shape:>15}  {count:>12,} trainable"
    yield f"{len(rows)} modules; {count_parameters(model)}"


def _elements(parameters: Iterator[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _memory_lines(prepared: Prepared) -> Iterator[str]:
    if prepared.plan is None:
        yield "memory: this architecture's forward needs real data, so no prediction can be made from shapes"
        return
    yield f"predicted memory of a training step on {prepared.plan.device}:"
    yield from prepared.plan.lines()
