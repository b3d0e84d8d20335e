"""The weighted sum of LoRA adapters, exactly, nearly, or with what TIES and DARE leave of them.

On the ground of the factors each of A and B is summed with the root of weight times scaling, so that the products of
one adapter's own factors have their weight; the products of one's B with another's A come along. Side by side the sum
is exact, at the sum of the ranks; of the product, the nearest of the rank asked for.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lorasmith.attach.composing.composition import Composition, Part
from lorasmith.attach.composing.reading import LoraUpdates, read_updates
from lorasmith.attach.composing.whole import class_names, merged_modules_to_save, merged_names, whole_tensors
from lorasmith.attach.content import AdapterContent
from lorasmith.attach.updates import Update, cast, written
from lorasmith.errors import AttachError
from lorasmith.methods.lora.factors import Factors, beside, decompose, decompose_product, norm

# the updates that some of the adapters make of one module, each with its weight
Weighted = list[tuple[Update, float]]


def compose_lora(parts: Sequence[Part], composition: Composition) -> AdapterContent:
    """One LoRA adapter of several; its config names the rank of every module, and every scaling is 1.

    Raises AttachError where ranks differ and the combination type needs them alike, and for variants without a sum.
    """
    adapters = [read_updates(part) for part in parts]
    whole = whole_tensors(parts, [adapter.whole for adapter in adapters])
    by_module = _by_module(parts, adapters)
    _refuse_overlap(by_module, merged_modules_to_save(parts) or [])
    largest = max(update.rank for weighted in by_module.values() for update, _ in weighted)
    rank = composition.svd_rank or largest
    updates = {path: _composed(path, weighted, composition, rank) for path, weighted in by_module.items()}
    configs = [adapter.config for adapter in adapters]
    names = merged_names([config.target_modules for config in configs], by_module, configs)
    content = written(configs[0], updates, names, modules_to_save=merged_modules_to_save(parts))
    return AdapterContent(content.config, {**content.state, **whole}, class_names(parts))


def distance_from_sum(parts: Sequence[Part], result: AdapterContent) -> float:
    """How far result is from the exact weighted sum of the updates, relative to that: the root of squares over all.

    0 for a result without any loss; infinite where the sum is zero and the result is not.
    """
    made = read_updates(Part("the result", result, 1.0)).updates
    by_module = _by_module(parts, [read_updates(part) for part in parts])
    apart, size = 0.0, 0.0
    for path, weighted in by_module.items():
        if any(update.grouped for update, _ in weighted):
            continue
        exact = beside([update.factors(weight) for update, weight in weighted])
        apart += norm(beside([exact, made[path].factors(-1.0)])) ** 2
        size += norm(exact) ** 2
    return math.sqrt(apart / size) if size else math.inf if apart else 0.0


def _by_module(parts: Sequence[Part], adapters: Sequence[LoraUpdates]) -> dict[str, Weighted]:
    found: dict[str, Weighted] = {}
    for part, adapter in zip(parts, adapters):
        for path, update in adapter.updates.items():
            found.setdefault(path, []).append((update, part.weight))
    return found


def _refuse_overlap(paths: dict[str, Weighted], whole: list[str]) -> None:
    for path in paths:
        if any(f".{name}." in f".{path}." for name in whole):
            raise AttachError(f"{path} is adapted by one adapter and trained whole by another; leave one of them out")


def _composed(path: str, weighted: Weighted, composition: Composition, rank: int) -> Update:
    first = weighted[0][0]
    grouped = any(update.grouped for update, _ in weighted)
    if composition.ground == "factors":
        made = _on_factors(path, weighted, composition)
    elif grouped:
        raise AttachError(f"{path} is a convolution with groups, of which only factors can be combined; use linear")
    elif composition.ground == "side by side":
        made = _shaped(beside([update.factors(weight) for update, weight in weighted]), first)
    else:
        made = _shaped(_on_product(path, weighted, composition, rank), first)
    bias = _bias(path, weighted, composition)
    return cast(Update(made.a, made.b, bias, 1.0, first.embedding), first.a.dtype)


def _on_factors(path: str, weighted: Weighted, composition: Composition) -> Factors:
    ranks = sorted({update.rank for update, _ in weighted})
    if len(ranks) > 1:
        raise AttachError(
            f"{path} has the ranks {', '.join(map(str, ranks))} in these adapters, and {composition.how} needs them "
            "alike; use cat, svd, or a type that ends in _svd"
        )
    scales = [weight * update.scaling for update, weight in weighted]
    roots = [math.sqrt(abs(scale)) for scale in scales]
    # the sign on one side only: on both it would cancel
    signed = [math.copysign(root, scale) for root, scale in zip(roots, scales)]
    generator = composition.generator(path)
    a = composition.arithmetic([update.a.float() for update, _ in weighted], signed, generator)
    b = composition.arithmetic([update.b.float() for update, _ in weighted], roots, generator)
    return Factors(a, b)


def _on_product(path: str, weighted: Weighted, composition: Composition, rank: int) -> Factors:
    if composition.arithmetic.pruning == "none" and composition.svd_clamp is None:
        exact = beside([update.factors(weight) for update, weight in weighted])
        return decompose_product(exact).leading(rank)
    products = [update.factors().product() for update, _ in weighted]
    total = composition.arithmetic(products, [weight for _, weight in weighted], composition.generator(path))
    made = decompose(total, composition.svd_driver if total.is_cuda else None).leading(rank)
    return made if composition.svd_clamp is None else _clamped(made, composition.svd_clamp)


def _clamped(factors: Factors, quantile: float) -> Factors:
    """Entries of both factors cut to the quantile of all of them, and to its negative."""
    values = torch.cat([factors.b.flatten(), factors.a.flatten()]).sort().values
    # torch.quantile refuses more than 16 million entries
    place = quantile * (values.numel() - 1)
    low, high = values[math.floor(place)], values[math.ceil(place)]
    limit = float(torch.lerp(low, high, place - math.floor(place)))
    return Factors(factors.a.clamp(-limit, limit), factors.b.clamp(-limit, limit))


def _shaped(factors: Factors, like: Update) -> Factors:
    """Matrices as the tensors that a module has: a convolution's kernel behind the channels."""
    a = factors.a.reshape(factors.rank, *like.a.shape[1:])
    return Factors(a, factors.b.reshape(*factors.b.shape, *like.b.shape[2:]))


def _bias(path: str, weighted: Weighted, composition: Composition) -> Tensor | None:
    biased = [(update, weight) for update, weight in weighted if update.bias is not None]
    if not biased:
        return None
    tasks = [update.bias.float() * update.scaling for update, _ in biased if update.bias is not None]
    return composition.arithmetic(tasks, [weight for _, weight in biased], composition.generator(f"{path}.bias"))
