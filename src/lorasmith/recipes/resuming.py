"""A resumed run is the run that was begun: its recipe must be the same."""

from collections.abc import Iterator, Mapping
from typing import Any

from lorasmith.errors import RecipeError
from lorasmith.recipes.reading import read_recipe
from lorasmith.recipes.recipe import Recipe
from lorasmith.training import RunFolder

# where a run lies, where it computes and who watches decide nothing of its result
_FREE = {"output", "device", "loggers"}


def refuse_other_recipe(folder: RunFolder, recipe: Recipe) -> None:
    """Raise RecipeError, naming the fields, where recipe is not the one that the run in folder was begun with."""
    if not folder.recipe.is_file():
        return
    begun = read_recipe(folder.recipe).model_dump(mode="json", exclude=_FREE)
    changes = list(_changes(begun, recipe.model_dump(mode="json", exclude=_FREE)))
    if changes:
        raise RecipeError(
            f"{folder.recipe} was begun with {', '.join(changes)}; give the same values to resume it, or choose "
            "another output folder for a new run"
        )


def _changes(begun: Mapping[str, Any], given: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name in [*begun, *(name for name in given if name not in begun)]:
        before, now = begun.get(name), given.get(name)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            yield from _changes(before, now, f"{prefix}{name}.")
        elif before != now and not (name == "target_modules" and _placed(before, now)):
            yield f"{prefix}{name}={before!r} (now {now!r})"


def _placed(before: Any, now: Any) -> bool:
    """Whether one names targets as they were asked for and the other, of a model that is adapted already, as found.

    The checkpoint refuses targets that differ, since its tensors would.
    """
    return isinstance(before, str) != isinstance(now, str)
