"""What a merge into 4 or 8 bits keeps of an adapter, by ways of rounding and by the adapter's size.

    python benchmarks/bench_merge.py [--quick]

Three parts, one row a measurement in results/merge.json:

layers    random rank-16 updates of six real linear layers (three of minilm-l6-v2, three of novels-8m), the first 128
          outputs of each, inputs from real text: calibrated on one part, measured on another
models    random rank-8 adapters on all linear layers of tinystories-656k: logits and losses on Grimm's fairy tales
trained   adapters trained on Grimm for some steps, then merged: tinystories-656k, stories260k, novels-8m

Sizes are |dW| / |W|, of all adapted layers together. Ways: those of recipes/merge_methods.py; requantize is what PEFT
does on a quantized base, round what one gets by merging in 16 bits and quantizing. QA-LoRA has pooled updates, int4
with zero points and no rounding. kept and other are as in evaluation/merge_fidelity.py; to_16bit is the distance of a
layer's outputs from those of W + dW, in units of what plain quantizing costs without an adapter.

Nothing is timed, so a busy machine spoils no figure; it goes on from the rows that are there. Needs the shared folder
of models and texts (LORASMITH_SHARED).
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import chain, product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from real_text import LEARNING_RATES, random_windows, windows
from results import peers, save
from shared import SHARED, require_shared
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from lorasmith.attach import adapters_of, attach, exact_layer
from lorasmith.data import Batch
from lorasmith.evaluation import layer_kept
from lorasmith.methods.lora import LoraConfig
from lorasmith.models.load import load
from lorasmith.quantized import Moments, QuantizedLinear, Scheme, compensated
from lorasmith.recipes.merge_methods import MergePlan, build_candidates
from lorasmith.recipes.merge_quantized import measured_candidates

Row = dict[str, Any]
# batches to calibrate on, and others to measure on
Texts = tuple[list[Batch], list[Batch]]
# what rows are of, and how they are made
Task = tuple[dict[str, Any], Callable[[], Iterator[Row]]]

SIZES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
SCHEMES = {"nf4": Scheme("nf4"), "int4": Scheme("int4"), "int8": Scheme("int8")}
ROWS, RANK, GROUP = 128, 16, 64
ZEROS = Scheme("int4", GROUP, zero_points=True)
LAYERS = {
    "minilm-l6-v2": (
        "encoder.layer.1.attention.self.query",
        "encoder.layer.3.intermediate.dense",
        "encoder.layer.4.output.dense",
    ),
    "novels-8m": ("layers.2.self_attn.q_proj", "layers.4.mlp.gate_proj", "layers.5.mlp.down_proj"),
}
STEPS = {"tinystories-656k": 50, "stories260k": 50, "novels-8m": 10}


class LayerInput(NamedTuple):
    weight: Tensor
    seen: Moments
    other: Moments


def sizes(quick: bool) -> tuple[float, ...]:
    return SIZES[1::2] if quick else SIZES


def layer_inputs(model: str, names: tuple[str, ...], count: int) -> dict[str, LayerInput]:
    """Weight [ROWS, in], moments to calibrate with and others to measure with, by layer."""
    loaded = AutoModel.from_pretrained(SHARED / "models" / model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "models" / model)
    text = (SHARED / "text" / "sherlock_holmes.txt").read_text()[3000 : 3000 + 1400 * count]
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
    rows = ids[: count * 256].view(-1, 256)
    halves = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    found: list[list[Moments]] = []
    for half in halves:
        moments = {name: Moments(loaded.get_submodule(name).weight.shape[1]) for name in names}
        hooks = [
            loaded.get_submodule(name).register_forward_pre_hook(lambda _, given, one=moments[name]: one.add(given[0]))
            for name in names
        ]
        with torch.no_grad():
            for part in half.split(4):
                loaded(input_ids=part)
        for hook in hooks:
            hook.remove()
        found.append(list(moments.values()))
    weights = [loaded.get_submodule(name).weight.detach()[:ROWS].clone() for name in names]
    return {name: LayerInput(*parts) for name, *parts in zip(names, weights, *found)}


def layer_tasks(quick: bool) -> Iterator[Task]:
    """The part `layers`."""
    for model, names in LAYERS.items():
        chosen = names[:1] if quick else names
        inputs = cache(partial(layer_inputs, model, chosen, 8 if quick else 32))
        for layer, (name, scheme), size in product(chosen, SCHEMES.items(), sizes(quick)):
            key = {"part": "layers", "model": model, "layer": layer, "format": name, "size": size}
            yield key, partial(ways_of_layer, inputs, layer, size, scheme)


def ways_of_layer(
    inputs: Callable[[], dict[str, LayerInput]], layer: str, size: float, scheme: Scheme
) -> Iterator[Row]:
    weight, seen, other = inputs()[layer]
    generator = torch.Generator().manual_seed(1)
    update = torch.randn(len(weight), RANK, generator=generator) @ torch.randn(
        RANK, weight.shape[1], generator=generator
    )
    update *= size * weight.norm() / update.norm()
    base = stored(weight, scheme)
    quantized = base.dequantize()
    second = seen.second
    results = {
        "requantize": stored(quantized + update, scheme),
        "compensate": compensated(base, quantized + update, second),
        "round": (rounded := stored(weight + update, scheme)),
        "compensate from 16 bits": compensated(rounded, weight + update, second),
    }
    unit = error(quantized - weight, other)
    for way, layer in results.items():
        merged = layer.dequantize()
        share = layer_kept(with_bias(update), with_bias(merged - quantized), other)
        yield {
            "way": way,
            "kept": share.kept,
            "other": share.other,
            "to_16bit": math.sqrt(error(merged - weight - update, other) / unit),
        }
    if scheme.format == "int4" and weight.shape[1] % GROUP == 0:
        yield {"way": "QA-LoRA, exact", **pooled_way(weight, size, other)}


def pooled_way(weight: Tensor, size: float, other: Moments) -> Row:
    """A pooled update of the same size, merged into zero points."""
    linear = nn.Linear(weight.shape[1], len(weight), bias=False)
    linear.weight = nn.Parameter(weight.clone(), requires_grad=False)
    model = nn.Sequential(QuantizedLinear.from_float(linear, ZEROS))
    fields = {"r": RANK, "target_modules": ["0"], "use_qalora": True, "qalora_group_size": GROUP}
    attach(model, LoraConfig(**fields, init_lora_weights=False))
    ((_, adapted),) = adapters_of(model).adapted()
    base = adapted.base_layer.dequantize()
    torch.manual_seed(1)
    nn.init.normal_(adapted.sites["default"].lora_A.weight)
    nn.init.normal_(adapted.sites["default"].lora_B.weight)
    scale_to(adapted, "default", size)
    merged = exact_layer(adapted, ["default"], adapted.base_layer.scheme)
    assert merged is not None
    update = adapted.sites["default"].delta(base)
    share = layer_kept(with_bias(update), with_bias(merged.dequantize() - base), other)
    to_16bit = math.sqrt(error(merged.dequantize() - weight - update, other) / error(base - weight, other))
    return {"kept": share.kept, "other": share.other, "to_16bit": to_16bit}


def stored(weight: Tensor, scheme: Scheme) -> QuantizedLinear:
    layer = QuantizedLinear(weight.shape[1], len(weight), False, scheme)
    layer.quantize_(weight)
    return layer


def error(change: Tensor, moments: Moments) -> float:
    return float(((change @ moments.second) * change).sum())


def with_bias(weight: Tensor) -> Tensor:
    return torch.cat([weight, torch.zeros(len(weight), 1)], dim=1)


@torch.no_grad()
def scale_to(adapted: Any, name: str, size: float) -> None:
    """Make the update of one site size times as large as its base's weight."""
    site = adapted.sites[name]
    weight = adapted.base_weight().float()
    site.lora_B.weight *= size * weight.norm() / site.delta(weight).norm()


def text_batches(model: str, count: int) -> Texts:
    """Windows to calibrate on, of the training part, and held-out ones to measure on."""
    train, held = windows(model)
    rows = next(random_windows(train, seed=5))
    more = next(random_windows(train, seed=6))
    calibration = torch.cat([rows, more, next(random_windows(train, seed=7))])[: 2 * count]
    return [batch(part) for part in calibration.split(8)], [batch(part) for part in held[:count].split(8)]


def batch(rows: Tensor) -> Batch:
    return Batch(rows, rows.clone(), torch.ones_like(rows), None, None, rows.numel())


def whole_model(model: str, scheme: Scheme, adapter: dict[str, Tensor] | float, config: LoraConfig) -> MergePlan:
    """The model stored in scheme with an adapter: its tensors, or random ones of a size."""
    loaded = load(SHARED / "models" / model, scheme=scheme, dtype=torch.float32, device="cpu").model
    dense = load(SHARED / "models" / model, dtype=torch.float32, device="cpu").model
    attach(loaded, config)
    book = adapters_of(loaded)
    if isinstance(adapter, dict):
        for key, tensor in book.tensors("default").items():
            tensor.copy_(adapter[key])
    else:
        torch.manual_seed(3)
        for _, wrapper in book.adapted():
            nn.init.normal_(wrapper.sites["default"].lora_A.weight)
            nn.init.normal_(wrapper.sites["default"].lora_B.weight)
            scale_to(wrapper, "default", adapter)
    paths = [path for path, _ in book.adapted()]
    # the 16-bit weights by path, as SourceWeights gives them
    return MergePlan(loaded.eval(), "default", paths, scheme, lambda path: dense.get_submodule(path).weight.detach())


def measured_ways(plan: MergePlan, texts: Texts) -> Iterator[Row]:
    candidates = build_candidates(plan, plan.names("auto"), *texts)
    for name, fidelity in measured_candidates(plan, candidates, texts[1]).items():
        numbers = fidelity.to_dict()
        losses = {
            key.replace("loss", "perplexity"): math.exp(numbers.pop(key)) for key in list(numbers) if "loss" in key
        }
        yield {"way": "QA-LoRA, exact" if name == "exact" else name, **numbers, **losses}


def size_of(plan: MergePlan) -> float:
    """|dW| / |W| over all adapted layers."""
    changed = whole = 0.0
    for _, wrapper in adapters_of(plan.model).adapted():
        weight = wrapper.base_weight().float()
        changed += float(wrapper.sites["default"].delta(weight).square().sum())
        whole += float(weight.square().sum())
    return math.sqrt(changed / whole)


def model_tasks(quick: bool) -> Iterator[Task]:
    """The part `models`."""
    model = "tinystories-656k"
    plain = LoraConfig(r=8, target_modules="all-linear")
    pooled = LoraConfig(r=8, target_modules="all-linear", use_qalora=True, qalora_group_size=GROUP)
    cases = [(name, scheme, plain) for name, scheme in SCHEMES.items()] + [("int4", ZEROS, pooled)]
    texts = cache(partial(text_batches, model, 8 if quick else 24))
    for (name, scheme, config), size in product(cases, sizes(quick)):
        key = {"part": "models", "model": model, "format": name, "zero_points": scheme.zero_points, "size": size}
        yield key, partial(random_ways, model, scheme, size, config, texts)


def random_ways(
    model: str, scheme: Scheme, size: float, config: LoraConfig, texts: Callable[[], Texts]
) -> Iterator[Row]:
    yield from measured_ways(whole_model(model, scheme, size, config), texts())


def trained_tensors(model: str, scheme: Scheme, config: LoraConfig, steps: int) -> dict[str, Tensor]:
    """The adapter after some steps of AdamW on Grimm over the quantized base, by file key."""
    train, _ = windows(model)
    loaded = load(SHARED / "models" / model, scheme=scheme, dtype=torch.float32, device="cpu").model
    torch.manual_seed(0)
    book = attach(loaded, config)
    parameters = book.parameters("default")
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATES[model], weight_decay=0.0)
    loaded.train()
    for step, rows in zip(range(steps), random_windows(train, seed=0)):
        optimizer.param_groups[0]["lr"] = LEARNING_RATES[model] * min(
            (step + 1) / 10, (steps - step) / max(1, steps - 10)
        )
        loaded(input_ids=rows, labels=rows).loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return {key: tensor.detach().clone() for key, tensor in book.tensors("default").items()}


def trained_tasks(quick: bool) -> Iterator[Task]:
    """The part `trained`."""
    for model, steps in STEPS.items():
        if quick and model != "stories260k":
            continue
        for name, scheme, config in trained_cases(model):
            key = {"part": "trained", "model": model, "format": name, "zero_points": scheme.zero_points}
            texts = partial(text_batches, model, 8 if quick else 24)
            yield key, partial(trained_ways, model, scheme, config, 20 if quick else steps, texts)


def trained_ways(
    model: str, scheme: Scheme, config: LoraConfig, steps: int, texts: Callable[[], Texts]
) -> Iterator[Row]:
    plan = whole_model(model, scheme, trained_tensors(model, scheme, config, steps), config)
    size = size_of(plan)
    for row in measured_ways(plan, texts()):
        yield {"size": size, "steps": steps, **row}


def trained_cases(model: str) -> Iterator[tuple[str, Scheme, LoraConfig]]:
    plain = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
    yield "nf4", Scheme("nf4"), LoraConfig(**plain)
    if model != "novels-8m":
        yield "int8", Scheme("int8"), LoraConfig(**plain)
        yield "int4", Scheme("int4"), LoraConfig(**plain)
    # rows of stories260k are no whole number of blocks
    if model == "tinystories-656k":
        pooled = {"use_qalora": True, "qalora_group_size": GROUP}
        yield "int4", ZEROS, LoraConfig(**(plain | pooled))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few of the rows, to see that it runs; writes nothing")
    parser.add_argument("--fresh", action="store_true", help="measure again what the results hold already")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"), help="folder to write to")
    chosen = parser.parse_args()
    require_shared(parser)
    began = time.perf_counter()
    about = {"versions": peers(), "torch": torch.__version__, "rank": RANK, "outputs": ROWS}
    kept = chosen.results / "merge.json"
    rows: list[Row] = (
        json.loads(kept.read_text())["rows"] if kept.is_file() and not (chosen.fresh or chosen.quick) else []
    )
    for key, make in chain(layer_tasks(chosen.quick), model_tasks(chosen.quick), trained_tasks(chosen.quick)):
        if any(key.items() <= row.items() for row in rows):
            continue
        made = [{**key, **row} for row in make()]
        rows += [
            {name: round(value, 5) if isinstance(value, float) else value for name, value in row.items()}
            for row in made
        ]
        print(f"{time.perf_counter() - began:6.0f} s  {key}", flush=True)
        if not chosen.quick:
            save("merge", about, rows, chosen.results)
    if chosen.quick:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
