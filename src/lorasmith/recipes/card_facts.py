"""What a run knows of its adapter's making, for the adapter's page."""

from pathlib import Path

from lorasmith.attach import CardFacts
from lorasmith.recipes.dataset import Dataset
from lorasmith.recipes.outcome import Outcome, shown
from lorasmith.recipes.recipe import Recipe
from lorasmith.recipes.sections import DataSource
from lorasmith.training import TrainingResult


def card_facts(recipe: Recipe, dataset: Dataset, outcome: Outcome, result: TrainingResult) -> CardFacts:
    """Data by name, not by place; how the base was held; the training in numbers; scores where any were taken."""
    settings = recipe.training
    scored = [name for name, score in (outcome.after or {}).items() if "value" in score]
    storage = "as it is stored" if recipe.quantization is None else str(recipe.quantization.scheme())
    return CardFacts(
        data=(f"{', '.join(map(_name, recipe.data.train))} ({len(dataset.train):,} examples)",),
        storage=storage,
        training=(
            f"{result.steps:,} steps, {settings.batch_size} x {settings.accumulation} examples or packs a step, "
            f"learning rate {settings.learning_rate:g}, seed {recipe.seed}"
        ),
        scores=tuple((name, shown(outcome.before, name), shown(outcome.after, name)) for name in scored),
        scored_on=f"{len(dataset.validation):,} held-out examples",
    )


def _name(source: DataSource) -> str:
    """A file's own name: where it lay is nobody's concern."""
    return Path(source.path).name if Path(source.path).exists() else source.path
