"""A recipe: everything that decides a fine-tuning run, checked before any of it happens."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from lorasmith.errors import RecipeError, nearest
from lorasmith.evaluation import metrics
from lorasmith.recipes.method_section import resolve_method
from lorasmith.recipes.sections import (
    DataSection,
    EvaluationSection,
    ModelSection,
    QuantizationSection,
    Section,
    Task,
    TokenizerSection,
    TrainingSection,
)

Device = Literal["auto", "cpu", "cuda", "mps"]

# which field a section means when it is written as a bare string
SHORT_FORMS = {"model": "path", "data": "train", "method": "name", "quantization": "format"}


class Recipe(Section):
    """A fine-tuning run. Whatever a file leaves out has a default here, and recipe.yaml states it."""

    task: Task = Field(default="causal", description="what the model is trained to do")
    model: ModelSection = Field(description="the base model; a bare string is its path")
    tokenizer: TokenizerSection = Field(default=TokenizerSection(), description="changes to the model's tokenizer")
    quantization: QuantizationSection | None = Field(
        default=QuantizationSection(),
        description="storage of the base's weights; none: as they are, the default where the base is stored quantized",
    )
    method: dict[str, Any] = Field(
        default={"name": "lora"}, validate_default=True, description="name and fields of the method"
    )
    data: DataSection = Field(description="what is trained on; a bare string is the training file")
    training: TrainingSection = Field(default=TrainingSection(), description="optimizer, schedule, length")
    evaluation: EvaluationSection = Field(
        default=EvaluationSection(), description="scores and samples before and after"
    )
    loggers: list[Literal["tensorboard", "wandb"]] = Field(
        default=[], description="besides metrics.jsonl and the display"
    )
    output: str = Field(default="", validate_default=False, description="the run folder; empty: runs/MODEL-METHOD")
    device: Device = Field(default="auto", description="where it runs; auto: CUDA, then MPS, then the CPU")
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="of the adapter's start, the order of the data and dropout"
    )

    @model_validator(mode="before")
    @classmethod
    def _spell_out(cls, value: Any) -> Any:
        """Turns the short forms (a bare string for a section) into sections."""
        if not isinstance(value, Mapping):
            return value
        spelled = dict(value)
        # a section with everything in it commented out
        empty = [name for name in ("method", "tokenizer", "training", "evaluation") if spelled.get(name, "") is None]
        spelled = {name: section for name, section in spelled.items() if name not in empty}
        if spelled.get("quantization") == "none":
            spelled["quantization"] = None
        for section, field in SHORT_FORMS.items():
            if isinstance(spelled.get(section), str):
                spelled[section] = {field: spelled[section]}
        return spelled

    @field_validator("method", mode="after")
    @classmethod
    def _method(cls, value: dict[str, Any]) -> dict[str, Any]:
        return resolve_method(value)

    @model_validator(mode="after")
    def _storage_exists(self) -> "Recipe":
        if self.quantization is not None:
            self.quantization.scheme()
        return self

    @model_validator(mode="after")
    def _can_be_evaluated(self) -> "Recipe":
        known = [f"eval_{name}" for name, metric in metrics.items() if self.task in metric.tasks]
        wanted = self.training.best_metric
        if wanted not in known:
            raise RecipeError(
                f"training.best_metric={wanted!r} is not one of: {', '.join(known)}.{nearest(wanted, known)}"
            )
        if self.training.evaluate_every and not (self.data.validation or self.data.validation_fraction):
            raise RecipeError(
                "training.evaluate_every needs validation data; set data.validation or validation_fraction"
            )
        return self

    def resolved(self) -> "Recipe":
        """This recipe with the run folder named and with local paths absolute, so that it runs from anywhere."""
        data = self.data.model_copy(
            update={
                "train": [_located(source) for source in self.data.train],
                "validation": self.data.validation and [_located(source) for source in self.data.validation],
            }
        )
        folder = self.output or f"runs/{Path(self.model.path).name}-{self.method['name']}"
        template = self.tokenizer.chat_template
        return self.model_copy(
            update={
                "data": data,
                "model": _located(self.model),
                "tokenizer": self.tokenizer.model_copy(update={"chat_template": template and absolute(template)}),
                "output": str(Path(folder).expanduser().absolute()),
            }
        )


def absolute(path: str) -> str:
    """The path from the root where it names something on this disk, and unchanged where it is a hub name."""
    local = Path(path).expanduser()
    return str(local.absolute()) if local.exists() else path


def _located(section: Any) -> Any:
    return section.model_copy(update={"path": absolute(section.path)})
