"""The sections of a recipe: every field with its default and what it means. Unknown keys are refused."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from lorasmith.quantized import Scheme


class Section(BaseModel):
    """A part of a recipe: frozen, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(Section):
    """Which base model, and how it is fetched. A bare string is its path."""

    path: str = Field(description="folder of a Hugging Face checkpoint, or a name on the hub")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    token_env: str | None = Field(None, description="environment variable that holds the hub token")
    dtype: Literal["auto", "bf16", "fp32"] = Field("auto", description="type of what stays unquantized; auto: stored")
    trust_remote_code: bool = Field(False, description="run Python files that lie in the model folder")
    offline: bool = Field(False, description="use the hub's cache only")


class TokenizerSection(Section):
    """Changes to the model's own tokenizer; they are saved with the adapter and restored with it."""

    add_tokens: list[str] = Field([], description="new ordinary tokens; the embeddings grow by as many rows")
    add_special_tokens: list[str] = Field([], description="new tokens that are never split and skipped in output")
    pad_token: str | None = Field(None, description="token to pad with, where the tokenizer has none")
    chat_template: str | None = Field(None, description="file with a Jinja chat template that replaces the model's")


class QuantizationSection(Section):
    """How the base's linear layers are stored. A bare string is the format; `none` keeps them as they are."""

    format: str = Field("nf4", description="number format: nf4, fp4, int4 or int8")
    blocksize: int = Field(64, description="weights that share a scale: 32, 64, ... 4096")
    double_quant: bool = Field(True, description="store the scales in 8 bits too")
    skip: list[str] | None = Field(None, description="modules left unquantized; null: the output head and routers")

    def scheme(self) -> Scheme:
        """The storage scheme that these fields name; raises FormatError where there is none."""
        return Scheme(self.format, self.blocksize, self.double_quant)


class DataSource(Section):
    """One source of examples. A bare string is its path."""

    path: str = Field(description="file (JSONL, JSON, CSV, Parquet, text) or a name of the `datasets` library")
    split: str | None = Field(None, description="which split of a `datasets` name")
    weight: float = Field(1.0, gt=0, description="share of this source in the mixture, relative to the others")
    shape: str | None = Field(None, description="what the columns mean; null: recognised by their names")
    limit: int | None = Field(None, gt=0, description="use at most this many records")


def _sources(value: Any) -> Any:
    listed = value if isinstance(value, list) else [value]
    return [{"path": item} if isinstance(item, str) else item for item in listed]


class DataSection(Section):
    """What is trained on, what is held out, and how text becomes tokens. A bare string is the training file."""

    train: list[DataSource] = Field(min_length=1, description="a path, or a list of sources with weights")
    validation: list[DataSource] | None = Field(None, description="held-out sources; null: a fraction of train")
    validation_fraction: float = Field(0.05, ge=0, lt=1, description="held out of train where validation is null")
    max_length: int = Field(1024, gt=1, description="tokens an example may have; longer text is cut into windows")
    packing: bool = Field(True, description="fill rows with several examples, attention kept inside each")
    loss_on: Literal["auto", "completions", "assistant", "all"] = Field(
        "auto", description="tokens that are learned; auto: answers of dialogues, everything of plain text"
    )
    columns: dict[str, str] = Field({}, description="where the file has other names: {our column: its column}")
    labels: list[str] | None = Field(None, description="class names in order; null: found in the training data")

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

    samples: int = Field(5, ge=0, description="generations shown before and after")
    max_new_tokens: int = Field(64, gt=0, description="length of each of them")
    max_batches: int | None = Field(None, gt=0, description="score at most this many validation batches")
    prompts: list[str] | None = Field(None, description="prompts to sample from; null: taken from the validation data")


class TrainingSection(Section):
    """How the adapter is trained."""

    max_steps: int | None = Field(None, gt=0, description="optimizer steps; null: by epochs")
    epochs: float | None = Field(None, gt=0, description="passes over the data, where max_steps is null; null: 3")
    batch_size: int = Field(8, gt=0, description="examples (packs, with packing) a micro-batch")
    accumulation: int = Field(1, gt=0, description="micro-batches an optimizer step")
    learning_rate: float = Field(2e-4, gt=0, description="peak learning rate")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="decay after the warm-up")
    warmup: float = Field(0.03, ge=0, description="warm-up: steps (1 or more), or a fraction of all steps (below 1)")
    clip: float | None = Field(1.0, gt=0, description="largest norm of the gradient; null: unclipped")
    weight_decay: float = Field(0.0, ge=0, description="decoupled decay a step, times the learning rate")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's averages of gradient and square")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    dtype: Literal["auto", "bf16", "fp32"] = Field("auto", description="type of the activations")
    gradient_checkpointing: bool = Field(False, description="recompute layers in the backward pass to save memory")
    evaluate_every: int | None = Field(None, gt=0, description="steps between evaluations; null: at the end only")
    save_every: int | None = Field(None, gt=0, description="steps between checkpoints; null: at the end only")
    log_every: int = Field(1, gt=0, description="steps between lines of metrics.jsonl")
    patience: int | None = Field(None, gt=0, description="stop after this many evaluations without a better loss")
    keep_checkpoints: int = Field(2, gt=0, description="how many of the newest checkpoints stay on disk")

    @model_validator(mode="after")
    def _patience_needs_evaluations(self) -> "TrainingSection":
        if self.patience is not None and self.evaluate_every is None:
            raise ValueError("patience counts evaluations, so set evaluate_every too")
        return self
