"""The summed loss of a micro-batch, by task.

Sums, not means: a step divides by the number of targets in all its micro-batches together, so that accumulation gives
the gradient of the large batch whatever each of them holds. Axes: B batch, T tokens, D model width, V vocabulary.
"""

import logging
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from lorasmith.data.batch import Batch
from lorasmith.errors import DataError
from lorasmith.models.head import Head, next_token_targets, split_head
from lorasmith.ops.cross_entropy import IGNORED
from lorasmith.ops.token_loss.schema import PLAIN, Objective, token_losses

logger = logging.getLogger(__name__)

Task = Literal["causal", "classification"]


class Loss(Protocol):
    """The negative log likelihoods of a batch's targets, summed to a scalar (at least f32)."""

    def __call__(self, batch: Batch) -> Tensor: ...


@runtime_checkable
class Wrapper(Protocol):
    """A model around another one, as PEFT's are."""

    def get_base_model(self) -> nn.Module:
        """The model inside, adapters in place."""


def base_model(model: nn.Module) -> nn.Module:
    """The transformers model inside a wrapper, or model itself."""
    return model.get_base_model() if isinstance(model, Wrapper) else model


def loss_for(model: nn.Module, task: Task, objective: Objective = PLAIN) -> Loss:
    """The loss of a task on model: for causal language models with the head fused in, where it can be split off."""
    if task == "classification":
        return ClassificationLoss(model, objective)
    head = split_head(base_model(model))
    return WholeModelLoss(model, objective) if head is None else SplitHeadLoss(head, objective)


class SplitHeadLoss:
    """Next-token loss through backbone and head apart: logits exist chunk by chunk, for supervised tokens only."""

    def __init__(self, head: Head, objective: Objective = PLAIN) -> None:
        self.head, self.objective = head, objective

    def __call__(self, batch: Batch) -> Tensor:
        hidden_BTD = self.head.backbone(**batch.model_inputs(), use_cache=False).last_hidden_state
        # soft prompts come first and have no labels
        hidden_BTD = hidden_BTD[:, -batch.labels.shape[1] :]
        nll, count = self.head.nll(hidden_BTD, next_token_targets(batch.labels, batch.cu_seqlens), self.objective)
        _check_count(count, batch)
        return nll


class WholeModelLoss:
    """Next-token loss on the logits of the model's own forward, all of which exist at once."""

    def __init__(self, model: nn.Module, objective: Objective = PLAIN) -> None:
        self.model, self.objective = model, objective

    def __call__(self, batch: Batch) -> Tensor:
        logits_BTV = self.model(**batch.model_inputs(), use_cache=False).logits[:, -batch.labels.shape[1] :]
        targets = next_token_targets(batch.labels, batch.cu_seqlens)
        kept = targets != IGNORED
        _check_count(int(kept.sum()), batch)
        return token_losses(logits_BTV[kept], targets[kept], objective=self.objective).sum()


class ClassificationLoss:
    """Cross-entropy of one class for each sequence; batches are padded."""

    def __init__(self, model: nn.Module, objective: Objective = PLAIN) -> None:
        self.model, self.objective = model, objective

    def __call__(self, batch: Batch) -> Tensor:
        logits_BC = self.model(**batch.model_inputs()).logits
        if batch.labels.shape != logits_BC.shape[:1]:
            raise DataError(
                f"{tuple(batch.labels.shape)} labels do not fit {tuple(logits_BC.shape)} logits; "
                "classification needs one class id for each row"
            )
        return token_losses(logits_BC, batch.labels, objective=self.objective).sum()


def _check_count(count: int, batch: Batch) -> None:
    if count != batch.supervised:
        raise DataError(
            f"a batch says that it has {batch.supervised} targets and has {count}; labels are not shifted, "
            f"{IGNORED} is no target, and the first token of a segment is none"
        )
