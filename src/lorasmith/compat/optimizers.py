"""PEFT's optimizers for LoRA, for a loop of one's own or transformers' Trainer: `create_loraplus_optimizer` and
`create_lorafa_optimizer`. Recipes have both as `training.loraplus_lr_ratio` and `training.optimizer: lorafa`."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers.pytorch_utils import ALL_LAYERNORM_LAYERS
from transformers.trainer_pt_utils import get_parameter_names

from lorasmith.attach import adapters_of
from lorasmith.compat.peft_model import bare_model
from lorasmith.errors import AttachError
from lorasmith.methods import FactorPair
from lorasmith.training.optimizers.gradients import inverse_gram, projected

_EMBEDDING_RATE = 1e-6


def create_loraplus_optimizer(
    model: nn.Module, optimizer_cls: Callable[..., Optimizer], *, lr: float, loraplus_lr_ratio: float, **kwargs: Any
) -> Optimizer:
    """optimizer_cls over what trains in model: LoRA's B (and vectors) with lr x loraplus_lr_ratio, the rest with lr.

    As in PEFT, factors of embeddings have a rate of their own (loraplus_lr_embedding, 1e-6), and loraplus_weight_decay
    (0) falls on everything but biases and norms. Source: LoRA+, arXiv 2402.12354, section 4.
    """
    decay = kwargs.pop("loraplus_weight_decay", 0.0)
    rates = {"rest": lr, "embedding": kwargs.pop("loraplus_lr_embedding", _EMBEDDING_RATE)}
    rates |= {"outer": lr * loraplus_lr_ratio, "outer, undecayed": lr * loraplus_lr_ratio}
    outer = {id(pair.b) for pair in _pairs(model)}
    embeddings = {id(p) for site in _sites(model) if site.layer.kind == "embedding" for p in site.parameters()}
    decayed = {name for name in get_parameter_names(model, ALL_LAYERNORM_LAYERS) if "bias" not in name}
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in rates}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in embeddings:
            groups["embedding"].append(parameter)
        elif id(parameter) in outer or parameter.dim() == 1:
            groups["outer" if name in decayed else "outer, undecayed"].append(parameter)
        else:
            groups["rest"].append(parameter)
    return optimizer_cls(
        [
            {"params": groups[name], "lr": rate, "weight_decay": 0.0 if name.endswith("undecayed") else decay}
            for name, rate in rates.items()
        ],
        lr=lr,
        **kwargs,
    )


def create_lorafa_optimizer(
    model: nn.Module,
    r: int,
    lora_alpha: float,
    lr: float,
    weight_decay: float = 0.0,
    use_rslora: bool | None = None,
) -> "LoraFAOptimizer":
    """Freeze LoRA's A in model, and give the optimizer that corrects the gradient of B for it.

    r, lora_alpha and use_rslora stand here for PEFT's sake: each module's own scaling counts, as in PEFT. Raises
    AttachError for a model without LoRA.
    """
    pairs = _pairs(model)
    if not pairs:
        raise AttachError("create_lorafa_optimizer needs a model with LoRA on it; attach one first")
    for pair in pairs:
        pair.a.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return LoraFAOptimizer(trained, pairs, lr=lr, weight_decay=weight_decay)


class LoraFAOptimizer(Optimizer):
    """LoRA-FA as PEFT steps it: Adam without weight decay in its averages, eps beside the uncorrected root.

    The gradient of B is g (A A^T)^-1 / s^2 in float32, where PEFT rounds it to bf16. Source: arXiv 2308.03303.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        pairs: Iterable[FactorPair],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._pairs = {pair.b: pair for pair in pairs}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient; returns what closure did."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, self._seen(parameter), group)
        return loss

    def _seen(self, parameter: nn.Parameter) -> Tensor:
        assert parameter.grad is not None
        pair = self._pairs.get(parameter)
        if pair is None:
            return parameter.grad
        state = self.state[parameter]
        if "inverse" not in state:
            state["inverse"] = inverse_gram(pair)
        return projected(parameter.grad, state["inverse"], pair).to(parameter.grad.dtype)

    def _move(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if "step" not in state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
        state["step"] += 1
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        corrected = group["lr"] * (1 - beta2 ** state["step"]) ** 0.5 / (1 - beta1 ** state["step"])
        parameter.addcdiv_(mean, square.sqrt().add_(group["eps"]), value=-corrected)
        if group["weight_decay"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])


def _sites(model: nn.Module) -> list[Any]:
    book = adapters_of(bare_model(model))
    return [site for name in book.active for _, site in book.sites(name)]


def _pairs(model: nn.Module) -> list[FactorPair]:
    return [pair for site in _sites(model) for pair in site.factor_pairs()]
