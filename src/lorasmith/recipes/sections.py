"""The sections of a recipe: every field with its default and what it means. Unknown keys are refused."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from lorasmith.errors import RecipeError, nearest
from lorasmith.evaluation.metrics import metrics
from lorasmith.models.compiled_layers import Compile
from lorasmith.quantized import Scheme
from lorasmith.recipes.expressions import require_expressions
from lorasmith.training.optimizers.table import optimizers
from lorasmith.training.settings import Precision, Schedule, TrainingSettings

_TRAINING = TrainingSettings()


Task = Literal["causal", "classification"]


class Section(BaseModel):
    """A part of a recipe: frozen, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(Section):
    """Which base model, and how it is fetched. A bare string is its path."""

    path: str = Field(description="folder of a Hugging Face checkpoint, or a name on the hub")
    revision: str | None = Field(default=None, description="branch, tag or commit on the hub")
    token_env: str | None = Field(default=None, description="environment variable that holds the hub token")
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        default="auto", description="type of what stays unquantized; auto: stored"
    )
    trust_remote_code: bool = Field(default=False, description="run Python files that lie in the model folder")
    offline: bool = Field(default=False, description="use the hub's cache only")


class TokenizerSection(Section):
    """Changes to the model's own tokenizer; they are saved with the adapter and restored with it."""

    add_tokens: list[str] = Field(default=[], description="new ordinary tokens; the embeddings grow by as many rows")
    add_special_tokens: list[str] = Field(
        default=[], description="new tokens that are never split and skipped in output"
    )
    pad_token: str | None = Field(default=None, description="token to pad with, where the tokenizer has none")
    chat_template: str | None = Field(
        default=None, description="file with a Jinja chat template that replaces the model's"
    )


class QuantizationSection(Section):
    """How the base's linear layers are stored. A bare string is the format; `none` keeps them as they are."""

    format: str = Field(default="nf4", description="number format: nf4, fp4, int4 or int8")
    blocksize: int = Field(default=64, description="weights that share a scale: 32, 64, ... 4096")
    double_quant: bool = Field(default=True, description="store the scales in 8 bits too")
    zero_points: bool = Field(
        default=False, description="give every block an offset, into which a QA-LoRA adapter merges exactly"
    )
    skip: list[str] | None = Field(
        default=None, description="modules left unquantized; null: the output head and routers"
    )

    def scheme(self) -> Scheme:
        """The storage scheme that these fields name; raises FormatError where there is none.

        Raises RecipeError for a name in skip that is no expression.
        """
        require_expressions("quantization.skip", self.skip or ())
        return Scheme(self.format, self.blocksize, self.double_quant, self.zero_points)


class DataSource(Section):
    """One source of examples. A bare string is its path."""

    path: str = Field(description="file (JSONL, JSON, CSV, Parquet, text) or a name of the `datasets` library")
    split: str | None = Field(default=None, description="which split of a `datasets` name, or files of a folder")
    subset: str | None = Field(default=None, description="configuration of a `datasets` name that has several")
    weight: float = Field(default=1.0, gt=0, description="passes over this source an epoch; 0.5 takes half of it")
    shape: str | None = Field(default=None, description="what the columns mean; null: recognised by their names")
    columns: dict[str, str] = Field(default={}, description="where the file has other names: {our column: its column}")
    limit: int | None = Field(default=None, gt=0, description="use at most this many records")


def _sources(value: Any) -> Any:
    listed = value if isinstance(value, list) else [value]
    return [{"path": item} if isinstance(item, str) else item for item in listed]


class DataSection(Section):
    """What is trained on, what is held out, and how text becomes tokens. A bare string is the training file."""

    train: list[DataSource] = Field(min_length=1, description="a path, or a list of sources with weights")
    validation: list[DataSource] | None = Field(default=None, description="held-out sources; null: a fraction of train")
    validation_fraction: float = Field(
        default=0.05, ge=0, lt=1, description="held out of train where validation is null"
    )
    max_length: int = Field(
        default=1024,
        gt=1,
        description="tokens an example may have, by default no more than the model has positions; longer text is cut",
    )
    packing: bool = Field(default=True, description="fill rows with several examples, attention kept inside each")
    loss_on: Literal["auto", "completions", "assistant", "all"] = Field(
        default="auto",
        description="what is learned; auto: all answers of dialogues and prompts, every token of plain text",
    )
    labels: list[str] | None = Field(default=None, description="class names in order; null: found in the training data")

    @field_validator("train", mode="before")
    @classmethod
    def _train(cls, value: Any) -> Any:
        return _sources(value)

    @field_validator("validation", mode="before")
    @classmethod
    def _validation(cls, value: Any) -> Any:
        return None if value is None else _sources(value)


class EvaluationSection(Section):
    """What is measured and shown before and after training."""

    samples: int = Field(default=5, ge=0, description="generations shown before and after")
    max_new_tokens: int = Field(default=64, gt=0, description="length of each of them")
    max_batches: int | None = Field(default=None, gt=0, description="score at most this many validation batches")
    prompts: list[str] | None = Field(
        default=None, description="prompts to sample from; null: taken from the validation data"
    )


class TrainingSection(Section):
    """How the adapter is trained: the fields, defaults and rules of TrainingSettings."""

    max_steps: int | None = Field(default=_TRAINING.max_steps, description="optimizer steps; null: by epochs")
    epochs: float | None = Field(
        default=_TRAINING.epochs, description="passes over the data; null, without max_steps: 1"
    )
    batch_size: int = Field(default=_TRAINING.batch_size, description="examples (packs, with packing) a micro-batch")
    accumulation: int = Field(default=_TRAINING.accumulation, description="micro-batches an optimizer step")
    learning_rate: float = Field(default=_TRAINING.learning_rate, description="peak learning rate")
    schedule: Schedule = Field(default=_TRAINING.schedule, description="decay after the warm-up")
    warmup: float = Field(
        default=_TRAINING.warmup, description="warm-up in steps, or below 1 as a fraction of all steps"
    )
    optimizer: str = Field(
        default=_TRAINING.optimizer,
        description="adamw; adamw8bit: its state in 8 bits; paged_adamw, paged_adamw8bit: state that gives way to the "
        "host when a CUDA GPU is full; lorafa: AdamW with LoRA's A frozen and the gradient of B corrected for it "
        "(LoRA-FA)",
    )
    loraplus_lr_ratio: float = Field(
        default=_TRAINING.loraplus_lr_ratio,
        description="learning rate of LoRA's B over that of everything else (LoRA+; its authors take 16); 1: the same",
    )
    clip: float | None = Field(default=_TRAINING.clip, description="largest norm of the gradient; null: unclipped")
    weight_decay: float = Field(default=_TRAINING.weight_decay, description="decoupled decay, on matrices only")
    label_smoothing: float = Field(
        default=_TRAINING.label_smoothing, description="share of each target that is spread over all tokens or classes"
    )
    z_loss: float = Field(default=_TRAINING.z_loss, description="weight of the squared log-normaliser in the loss")
    betas: tuple[float, float] = Field(default=_TRAINING.betas, description="AdamW's averages of gradient and square")
    eps: float = Field(default=_TRAINING.eps, description="AdamW's epsilon")
    dtype: Precision = Field(
        default=_TRAINING.dtype, description="type of the activations: bf16, fp32, or fp16 with a scale on the loss"
    )
    gradient_checkpointing: bool = Field(
        default=_TRAINING.gradient_checkpointing, description="recompute layers in the backward pass to save memory"
    )
    offload_checkpoints: bool = Field(
        default=_TRAINING.offload_checkpoints,
        description="on a CUDA GPU with gradient_checkpointing, keep the layers' inputs in host memory until the "
        "backward pass",
    )
    return_freed_memory: bool = Field(
        default=_TRAINING.return_freed_memory,
        description="on a CPU, give freed blocks back at once: less memory, most so with gradient_checkpointing, but "
        "steps up to a third slower",
    )
    step_in_backward: bool = Field(
        default=_TRAINING.step_in_backward,
        description="move each parameter as soon as its gradient is there, and free that; needs accumulation 1 and "
        "clip null",
    )
    compile: Compile = Field(
        default=_TRAINING.compile,
        description="run the layers as graphs of torch.compile: true, false, or auto: where that is known to pay, "
        "which is nowhere yet",
    )
    evaluate_every: int | None = Field(
        default=_TRAINING.evaluate_every, description="steps between evaluations; null: the end"
    )
    save_every: int | None = Field(
        default=_TRAINING.save_every, description="steps between checkpoints; null: at the end"
    )
    log_every: int = Field(default=_TRAINING.log_every, description="steps between lines of metrics.jsonl")
    patience: int | None = Field(
        default=_TRAINING.patience, description="evaluations without a better score before it stops"
    )
    best_metric: str = Field(default=_TRAINING.best_metric, description="which score decides the best checkpoint")
    keep_checkpoints: int = Field(
        default=_TRAINING.keep_checkpoints, description="newest checkpoints that stay on disk"
    )

    @model_validator(mode="after")
    def _holds(self) -> "TrainingSection":
        self.settings(seed=0)
        if self.optimizer not in optimizers:
            known = ", ".join(sorted(optimizers))
            raise RecipeError(f"training.optimizer={self.optimizer!r} is not one of: {known}")
        return self

    def settings(self, seed: int) -> TrainingSettings:
        """The settings of the loop; raises RecipeError, naming the field, for a value out of range."""
        name = self.best_metric.removeprefix("eval_")
        if name not in metrics:
            known = [f"eval_{metric}" for metric in metrics.names()]
            raise RecipeError(
                f"training.best_metric={self.best_metric!r} is not one of: {', '.join(known)}."
                f"{nearest(self.best_metric, known)}"
            )
        metric = metrics[name]
        return TrainingSettings(**self.model_dump(), higher_is_better=metric.higher_is_better, seed=seed)
