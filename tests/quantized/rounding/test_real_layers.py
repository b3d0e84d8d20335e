"""What error-compensated rounding keeps of an adapter on real weights with real inputs, and what plain rounding does.

Calibrated on one text and measured on another: nothing here is fitted to what it is judged by.
"""

import math

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from lorasmith.quantized import Moments, QuantizedLinear, Scheme, compensated

LAYERS = ("encoder.layer.1.attention.self.query", "encoder.layer.3.intermediate.dense")
ROWS, RANK = 96, 16


@pytest.fixture(scope="module")
def layers(shared):
    """(weight [ROWS, in], second moments of a calibration text, of another text) of each layer."""
    model = AutoModel.from_pretrained(shared / "models" / "minilm-l6-v2", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "minilm-l6-v2")
    text = (shared / "text" / "sherlock_holmes.txt").read_text()[3000:20000]
    rows = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)[:3072].view(-1, 128)
    return {name: (model.get_submodule(name).weight.detach()[:ROWS], *seen(model, name, rows)) for name in LAYERS}


def seen(model, name: str, rows: Tensor) -> tuple[Tensor, Tensor]:
    found = []
    for part in (rows[:16], rows[16:]):
        moments = Moments(model.get_submodule(name).weight.shape[1])
        handle = model.get_submodule(name).register_forward_pre_hook(lambda _, given, one=moments: one.add(given[0]))
        with torch.no_grad():
            model(input_ids=part)
        handle.remove()
        found.append(moments.second)
    return found[0], found[1]


def stored(weight: Tensor) -> QuantizedLinear:
    layer = QuantizedLinear(weight.shape[1], len(weight), False, Scheme())
    layer.quantize_(weight)
    return layer


def update(weight: Tensor, size: float) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    factors = (
        torch.randn(len(weight), RANK, generator=generator),
        torch.randn(RANK, weight.shape[1], generator=generator),
    )
    product = factors[0] @ factors[1]
    return product * (size * weight.norm() / product.norm())


def product(a: Tensor, b: Tensor, second: Tensor) -> float:
    return float(((a @ second) * b).sum())


def kept_and_other(effect: Tensor, change: Tensor, second: Tensor) -> tuple[float, float]:
    whole = product(effect, effect, second)
    kept = product(effect, change, second) / whole
    return kept, math.sqrt(product(change, change, second) / whole - kept**2)


# least kept and most other change, and more than requantizing keeps of the same adapter
@pytest.mark.parametrize(("size", "least", "most", "requantized"), [(0.05, 0.7, 0.75, 0.5), (0.1, 0.93, 0.55, 0.9)])
@pytest.mark.parametrize("name", LAYERS)
def test_on_top_of_nf4_most_of_an_adapter_is_kept(layers, name, size, least, most, requantized):
    weight, calibration, other = layers[name]
    base = stored(weight)
    quantized, change = base.dequantize(), update(weight, size)
    kept, rest = kept_and_other(
        change, compensated(base, quantized + change, calibration).dequantize() - quantized, other
    )
    assert kept >= least
    assert rest < most
    plain, _ = kept_and_other(change, stored(quantized + change).dequantize() - quantized, other)
    assert plain < requantized


@pytest.mark.parametrize("name", LAYERS)
def test_from_16_bits_the_merged_layer_is_nearer_to_the_16_bit_one(layers, name):
    weight, calibration, other = layers[name]
    target = weight + update(weight, 0.05)
    rounded = stored(target)
    lost = [target - layer.dequantize() for layer in (rounded, compensated(rounded, target, calibration))]
    plain, better = (product(one, one, other) for one in lost)
    assert math.sqrt(better / plain) <= 0.7
