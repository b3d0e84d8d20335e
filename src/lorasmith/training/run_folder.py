"""The folder of a run: all that passes between commands."""

from dataclasses import dataclass
from pathlib import Path

from lorasmith.errors import RecipeError


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder; nothing is made until something is written."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @property
    def recipe(self) -> Path:
        """Everything that was decided, defaults included."""
        return self.path / "recipe.yaml"

    @property
    def plan(self) -> Path:
        """The memory that was predicted, by component."""
        return self.path / "plan.json"

    @property
    def metrics(self) -> Path:
        """A line a logged step."""
        return self.path / "metrics.jsonl"

    @property
    def adapter(self) -> Path:
        """The trained adapter in PEFT's format, with tokenizer and chat template."""
        return self.path / "adapter"

    @property
    def checkpoints(self) -> Path:
        """Folders step-000200/, each whole or not there."""
        return self.path / "checkpoints"

    @property
    def directions(self) -> Path:
        """What the adapter's A began at, by module, where its start was found in the data."""
        return self.path / "directions.safetensors"

    @property
    def places(self) -> Path:
        """Which entries of the weights the adapter trains, by module, where they were chosen by the data."""
        return self.path / "places.safetensors"

    @property
    def tensorboard(self) -> Path:
        """Event files of TensorBoard, where it was asked for."""
        return self.path / "tensorboard"

    @property
    def wandb(self) -> Path:
        """The id that Weights & Biases knows the run by, where it was asked for."""
        return self.path / "wandb-id.txt"

    @property
    def evaluation(self) -> Path:
        """Scores before and after, with intervals."""
        return self.path / "evaluation.json"

    @property
    def report(self) -> Path:
        """One self-contained page."""
        return self.path / "report.html"

    def refuse_used(self) -> None:
        """Raise RecipeError where a run has already been trained here."""
        if self.metrics.exists() or self.checkpoints.exists():
            raise RecipeError(
                f"{self.path} already holds a run; resume it, or choose another output folder for a new one"
            )
