"""What a merged model keeps of its adapter, on text.

The effect of an adapter is what it changes: outputs with it minus outputs of the base. Of what the merged model
changes, `kept` is the share along the effect, and `other` all the rest, relative to the effect; a perfect merge has 1
and 0, one that rounds the adapter away 0 and about 1. On logits, of which a constant over the vocabulary means nothing,
and on the outputs of single layers, where no text has to be run: the second moments of the inputs say it all. A token
that one of the models rules out (a logit of minus infinity, as where a vocabulary is masked) has no part in these.

N scored positions, V vocabulary (or classes), I in_features, O out_features.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from lorasmith.data import Batch
from lorasmith.errors import DataError
from lorasmith.models.head import next_token_targets
from lorasmith.ops.cross_entropy import IGNORED
from lorasmith.quantized import Moments

# the logits [N, V] of a model in some state, and the targets [N]
Voice = Callable[[Batch], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Kept:
    """The share of an effect that a change has along it, and the size of the rest relative to the effect."""

    kept: float
    other: float


@dataclass(frozen=True)
class Fidelity:
    """A merged model beside its adapter on the base, over some positions.

    kl is the mean Kullback-Leibler divergence from adapter-on-base to merged in nats, agreement the share of positions
    with the same most likely token. The losses are mean negative log likelihoods of the text.
    """

    kept: float
    other: float
    kl: float
    agreement: float
    base_loss: float
    adapted_loss: float
    merged_loss: float
    positions: int

    def to_dict(self) -> dict[str, float | None]:
        """The numbers by name, as merge.json holds them; None for a change beside no effect at all."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}


def scored_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits f32 [N, V] and targets [N] of the positions of batch that have a label; of every row for classes."""
    logits = model(**batch.model_inputs()).logits
    if logits.dim() == 2:
        return logits.float(), batch.labels
    targets_BT = next_token_targets(batch.labels, batch.cu_seqlens)
    scored_BT = targets_BT != IGNORED
    # soft prompts come first and have no labels
    return logits[:, -scored_BT.shape[1] :][scored_BT].float(), targets_BT[scored_BT]


@torch.no_grad()
def merge_fidelity(
    base: Voice, adapted: Voice, merged: Mapping[str, Voice], batches: Iterable[Batch]
) -> dict[str, Fidelity]:
    """How each of the merged models stands beside the adapter on its base; logits exist for one batch at a time.

    Raises DataError where no position of batches is scored.
    """
    sums = {name: _Sums() for name in merged}
    for batch in batches:
        before, targets = base(batch)
        if not targets.numel():
            continue
        wanted, _ = adapted(batch)
        for name, voice in merged.items():
            sums[name].add(before, wanted, voice(batch)[0], targets)
    if any(not one.positions for one in sums.values()):
        raise DataError("no token of the text has a label to score; give a longer text")
    return {name: one.fidelity() for name, one in sums.items()}


class _Sums:
    """Sums over positions, in f64."""

    def __init__(self) -> None:
        self.positions = 0
        self.effect = self.along = self.change = 0.0
        self.kl = self.agreed = 0.0
        self.losses = [0.0, 0.0, 0.0]

    def add(self, base_NV: Tensor, adapted_NV: Tensor, merged_NV: Tensor, targets_N: Tensor) -> None:
        logs = [logits.log_softmax(dim=-1) for logits in (base_NV, adapted_NV, merged_NV)]
        for place, log in enumerate(logs):
            self.losses[place] -= float(log.gather(1, targets_N[:, None]).double().sum())
        _, adapted, merged = logs
        # what the adapted model rules out has no share in the mean; what merged alone rules out makes it infinite
        apart = torch.where(adapted.isneginf(), 0.0, adapted - merged)
        self.kl += float((adapted.exp() * apart).double().sum())
        self.agreed += float((adapted.argmax(dim=-1) == merged.argmax(dim=-1)).double().sum())
        out_NV = base_NV.isneginf() | adapted_NV.isneginf() | merged_NV.isneginf()
        effect, change = _centred(adapted_NV - base_NV, out_NV), _centred(merged_NV - base_NV, out_NV)
        self.effect += float(effect.square().double().sum())
        self.change += float(change.square().double().sum())
        self.along += float((effect * change).double().sum())
        self.positions += len(targets_N)

    def fidelity(self) -> Fidelity:
        share = _kept(self.effect, self.along, self.change)
        base, adapted, merged = (total / self.positions for total in self.losses)
        # a sum of f32 numbers may fall below zero by their rounding
        kl, agreement = max(0.0, self.kl / self.positions), self.agreed / self.positions
        return Fidelity(share.kept, share.other, kl, agreement, base, adapted, merged, self.positions)


def layer_kept(effect: Tensor, change: Tensor, moments: Moments) -> Kept:
    """What the change [O, I + 1] of a layer has of the effect [O, I + 1], over the inputs that moments are of.

    The last column is that of the bias, zeros where there is none.
    """
    passed = effect @ _with_one(moments)
    along, size = float((passed * change).double().sum()), float((passed * effect).double().sum())
    return _kept(size, along, layer_error(change, moments))


def layer_error(change: Tensor, moments: Moments) -> float:
    """The mean square of what a change [O, I + 1] of a layer does to its outputs, summed over these."""
    # rounding may take a change that no input shows below zero
    return max(0.0, float(((change @ _with_one(moments)) * change).double().sum()))


def _with_one(moments: Moments) -> Tensor:
    """The second moments [I + 1, I + 1] of the input with a one behind it, which the bias multiplies."""
    second, mean = moments.second, moments.mean
    ones = torch.ones(1, device=mean.device)
    return torch.cat([torch.cat([second, mean[:, None]], dim=1), torch.cat([mean, ones])[None]])


def _kept(effect: float, along: float, change: float) -> Kept:
    """From squared sizes: of the effect, of the change, and their product."""
    if effect <= 0:
        return Kept(1.0, 0.0 if change <= 0 else math.inf)
    kept = along / effect
    return Kept(kept, math.sqrt(max(0.0, change / effect - kept * kept)))


def _centred(difference_NV: Tensor, out_NV: Tensor) -> Tensor:
    """A difference of logits without its mean over the vocabulary; zero where a token is out, which has no part."""
    known_NV = difference_NV.masked_fill(out_NV, 0.0)
    count_N1 = (~out_NV).sum(dim=-1, keepdim=True).clamp_min(1)
    return (known_NV - known_NV.sum(dim=-1, keepdim=True) / count_N1).masked_fill(out_NV, 0.0)
