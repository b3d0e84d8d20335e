"""A causal language model taken apart into backbone and head, so that logits need not exist all at once.

The split is believed only where a trial shows it: the backbone's output is replaced by random states, large enough
that a soft cap or a scale shows, and the model's own logits must equal what the parts give.
Axes: B batch, T tokens, D model width, V vocabulary.
"""

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from lorasmith.models.narrow_linear import PLAIN_LINEARS
from lorasmith.models.trial import trial
from lorasmith.ops.cross_entropy import (
    IGNORED,
    head_cross_entropy,
    head_token_losses,
    linear_cross_entropy,
    linear_token_losses,
)
from lorasmith.ops.token_loss.schema import PLAIN, Objective

logger = logging.getLogger(__name__)

_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_FACTORS = ("logit_scale",)
_DIVISORS = ("logits_scaling",)
_TRIAL_SPREADS = (1.0, 30.0)


@dataclass(frozen=True)
class Head:
    """The parts of a causal language model: logits = cap(scale * module(backbone(...).last_hidden_state))."""

    backbone: nn.Module
    module: nn.Module
    vocabulary: int
    softcap: float | None
    scale: float

    @property
    def _plain(self) -> nn.Linear | None:
        module = self.module
        return module if isinstance(module, nn.Linear) and type(module) in PLAIN_LINEARS else None

    @property
    def weight(self) -> Tensor | None:
        """[V, D] where the head is a plain linear layer, else None."""
        return self._plain.weight if self._plain is not None else None

    @property
    def bias(self) -> Tensor | None:
        """[V] where the head is a plain linear layer that has one."""
        return self._plain.bias if self._plain is not None else None

    def nll(
        self, hidden: Tensor, targets: Tensor, objective: Objective = PLAIN, weights: Tensor | None = None
    ) -> tuple[Tensor, int]:
        """Summed negative log likelihood of targets [B, T] (already shifted) after hidden [B, T, D], and their count.

        objective may ask for another loss, and weights [B, T] may count some targets for more than others.

        A head with hooks, adapters or quantized storage is called as the module that it is.
        """
        asked: Any = {**self._shaping, "objective": objective, "weights": weights}
        weight = self._product_weight
        if weight is None:
            return head_cross_entropy(hidden, self.module, targets, vocabulary=self.vocabulary, **asked)
        return linear_cross_entropy(hidden, weight, targets, head_bias=self.bias, **asked)

    def token_nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The negative log likelihood of each of targets [N] after hidden [N, D], without gradients; at least f32."""
        weight = self._product_weight
        if weight is None:
            return head_token_losses(hidden, self.module, targets, vocabulary=self.vocabulary, **self._shaping)
        return linear_token_losses(hidden, weight, targets, head_bias=self.bias, **self._shaping)

    @property
    def _product_weight(self) -> Tensor | None:
        """The weight, where multiplying by it is all that the module does."""
        return None if _hooked(self.module) else self.weight

    @property
    def _shaping(self) -> dict[str, Any]:
        return {"softcap": self.softcap, "scale": self.scale}

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden [..., D], in the head's own dtype."""
        logits = self.module(hidden) * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def split_head(model: nn.Module) -> Head | None:
    """Backbone and head of a transformers causal language model, or None where they are not plainly two parts.

    None (with a line in the log that says why) for a model that is not transformers', has no output embedding, or
    does something to its logits that config fields do not explain. The trial is two forwards of four tokens.
    """
    if not isinstance(model, PreTrainedModel):
        return _refuse(model, "it is not a transformers model")
    module, backbone = model.get_output_embeddings(), model.base_model
    if module is None or backbone is model:
        return _refuse(model, "it has no separate output embedding")
    if model.config.is_encoder_decoder or "input_ids" not in inspect.signature(backbone.forward).parameters:
        return _refuse(model, "its backbone does not read tokens alone")
    config = model.config.get_text_config()
    head = Head(backbone, module, config.vocab_size, _softcap(config.to_dict()), _scale(config.to_dict()))
    reason = _trial(model, head)
    if reason is not None:
        return _refuse(model, reason)
    return head


def next_token_targets(labels: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Labels [B, T] moved one to the left, so that row t holds what follows token t.

    The last token of a row, or of a packed segment (cu_seqlens [segments + 1]), has nothing to predict.
    """
    targets = torch.full_like(labels, IGNORED)
    targets[:, :-1] = labels[:, 1:]
    if cu_seqlens is not None:
        targets[:, cu_seqlens[1:].to(labels.device, torch.long, non_blocking=True) - 1] = IGNORED
    return targets


def _softcap(fields: dict[str, object]) -> float | None:
    for name in _SOFTCAPS:
        if fields.get(name):
            return float(fields[name])  # type: ignore[arg-type]
    return None


def _scale(fields: dict[str, object]) -> float:
    for name in _FACTORS:
        if fields.get(name) is not None:
            return float(fields[name])  # type: ignore[arg-type]
    for name in _DIVISORS:
        if fields.get(name):
            return 1 / float(fields[name])  # type: ignore[arg-type]
    return 1.0


def _hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) or module._backward_hooks
    )


def _refuse(model: nn.Module, reason: str) -> Head | None:
    logger.warning(
        "%s is not split into backbone and head, so its own forward makes all logits at once: %s",
        type(model).__name__,
        reason,
    )
    return None


def _trial(model: PreTrainedModel, head: Head) -> str | None:
    """Why the parts do not give the model's own logits, or None where they do."""
    device = _tokens_device(model)
    if device.type == "meta":
        return "its weights are on the meta device, where nothing can be tried"
    tokens = torch.arange(4, device=device)[None] % head.vocabulary
    with trial(model, device):
        # the whole way: something placed around the model's forward (a soft prompt) would show here
        own = model(input_ids=tokens, use_cache=False).logits
        parts = head.logits(head.backbone(input_ids=tokens, use_cache=False).last_hidden_state)
        if not _same(own, parts):
            return "its logits are not those of its backbone and output embedding"
        for spread in _TRIAL_SPREADS:
            with _replaced_states(head.backbone, spread) as states:
                own = model(input_ids=tokens, use_cache=False).logits
            if not _same(own, head.logits(states[0])):
                return "its logits pass through something that no known config field explains"
    return None


def _tokens_device(model: PreTrainedModel) -> torch.device:
    return next(model.get_input_embeddings().parameters()).device


@contextmanager
def _replaced_states(backbone: nn.Module, spread: float) -> Iterator[list[Tensor]]:
    """While the block runs, the backbone's last hidden state is random; it is put into the list that is yielded."""
    states: list[Tensor] = []

    def replace(module: nn.Module, arguments: object, output: BaseModelOutput) -> BaseModelOutput:
        generator = torch.Generator().manual_seed(0)
        own = output.last_hidden_state
        assert own is not None
        states.append((torch.randn(own.shape, generator=generator) * spread).to(own))
        output.last_hidden_state = states[-1]
        return output

    handle = backbone.register_forward_hook(replace)
    try:
        yield states
    finally:
        handle.remove()


def _same(own: Tensor, parts: Tensor) -> bool:
    if own.shape != parts.shape:
        return False
    # the same products in another order: a few roundings of the logits' own dtype, relative to the largest logit
    bound = 16 * torch.finfo(own.dtype).eps * float(own.abs().max().clamp_min(1e-3))
    return bool(((own - parts).abs() <= bound).all())
