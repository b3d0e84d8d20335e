"""What a merge keeps, against outputs that were really run."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lorasmith.attach import adapters_of, attach
from lorasmith.data import Batch
from lorasmith.errors import DataError
from lorasmith.evaluation import input_moments, layer_error, layer_kept, merge_fidelity, scored_logits
from lorasmith.methods.lora import LoraConfig
from lorasmith.quantized import Moments
from tiny import IDS, llama, shake


def batch(labels: torch.Tensor = IDS) -> Batch:
    """The second row is padded from its sixth token on."""
    mask = torch.ones_like(IDS)
    mask[1, 5:] = 0
    return Batch(IDS, labels.masked_fill(mask == 0, -100), mask, None, None, 10)


def voices(base: torch.Tensor, adapted: torch.Tensor, merged: torch.Tensor):
    targets = torch.zeros(len(base), dtype=torch.long)
    return [lambda _, logits=logits: (logits, targets) for logits in (base, adapted, merged)]


def fidelity(base, adapted, merged):
    before, wanted, found = voices(base, adapted, merged)
    return merge_fidelity(before, wanted, {"it": found}, [batch()])["it"]


def test_the_adapter_itself_keeps_all_and_the_base_nothing():
    base, adapted = torch.randn(2, 6, 9)
    whole = fidelity(base, adapted, adapted)
    assert (round(whole.kept, 6), whole.kl, whole.agreement) == (1, 0, 1)
    assert whole.other < 1e-6
    nothing = fidelity(base, adapted, base)
    assert (nothing.kept, nothing.other) == (0, 0)
    assert nothing.kl > 0.1


def test_what_lies_along_the_effect_is_kept_and_what_lies_across_is_other():
    base = torch.zeros(1, 4)
    effect, across = torch.tensor([[1.0, -1, 0, 0]]), torch.tensor([[0.0, 0, 1, -1]])
    found = fidelity(base, effect, 0.6 * effect + 0.3 * across)
    assert_close((found.kept, found.other), (0.6, 0.3))


def test_a_constant_over_the_vocabulary_is_no_change():
    base, adapted = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(0))
    found = fidelity(base, adapted, adapted + 5)
    # f32 around 5: 2e-7 of it, beside an effect of about 1
    assert found.other < 1e-4
    assert found.kl < 1e-5


def test_kl_and_losses_are_torchs():
    base, adapted, merged = torch.randn(3, 6, 9)
    found = fidelity(base, adapted, merged)
    kl = nn.functional.kl_div(merged.log_softmax(1), adapted.log_softmax(1), log_target=True, reduction="batchmean")
    assert_close(found.kl, float(kl), atol=1e-6, rtol=0)
    losses = [float(nn.functional.cross_entropy(x, torch.zeros(6).long())) for x in (base, adapted, merged)]
    assert_close([found.base_loss, found.adapted_loss, found.merged_loss], losses, atol=1e-6, rtol=0)


def test_tokens_that_are_ruled_out_have_no_part():
    base, adapted, merged = torch.randn(3, 6, 9, generator=torch.Generator().manual_seed(0))
    plain = fidelity(base, adapted, merged)
    wider = [torch.cat([x, torch.full((6, 4), -torch.inf)], 1) for x in (base, adapted, merged)]
    for name, value in plain.to_dict().items():
        assert_close(fidelity(*wider).to_dict()[name], value, atol=1e-6, rtol=0)


def test_a_token_that_the_merged_model_alone_rules_out_is_an_infinite_divergence():
    base, adapted = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(0))
    merged = adapted.clone()
    merged[:, 3] = -torch.inf
    found = fidelity(base, adapted, merged)
    assert found.kl == math.inf
    assert_close((found.kept, found.other), (1.0, 0.0), atol=1e-3, rtol=0)


def test_an_adapter_without_effect_is_kept_by_changing_nothing_alone():
    base = torch.randn(6, 9)
    still, moved = fidelity(base, base, base), fidelity(base, base, 2 * base)
    assert (still.kept, still.other) == (1, 0)
    assert moved.other == math.inf
    assert moved.to_dict()["other"] is None


def test_text_without_labels_is_refused():
    model = llama()
    nothing = batch(torch.full_like(IDS, -100))
    speak = lambda one: scored_logits(model, one)  # noqa: E731
    with torch.no_grad(), pytest.raises(DataError, match="label"):
        merge_fidelity(speak, speak, {"it": speak}, [nothing])


def test_scored_logits_stand_before_their_targets():
    model = llama()
    with torch.no_grad():
        logits, targets = scored_logits(model, batch())
        own = model(input_ids=IDS, attention_mask=batch().attention_mask).logits
    assert targets.tolist() == [*IDS[0, 1:].tolist(), *IDS[1, 1:5].tolist()]
    assert_close(logits, torch.cat([own[0, :6], own[1, :4]]))


def test_what_a_layer_keeps_follows_from_moments_as_from_outputs():
    x = torch.randn(50, 8) @ torch.randn(8, 8) + 1
    moments = Moments(8)
    moments.add(x)
    effect, change = torch.randn(2, 5, 9)
    run = [torch.cat([x, torch.ones(50, 1)], 1) @ matrix.T for matrix in (effect, change)]
    kept = float((run[0] * run[1]).sum() / run[0].square().sum())
    other = float((run[1] - kept * run[0]).norm() / run[0].norm())
    found = layer_kept(effect, change, moments)
    assert_close((found.kept, found.other), (kept, other), atol=1e-5, rtol=1e-5)


def test_moments_are_of_what_layers_are_fed_without_padding_and_shared_by_those_fed_alike():
    model = llama()
    attach(model, LoraConfig(target_modules="all-linear"))
    shake(model)
    layers = {path: (module, module.base_layer.in_features) for path, module in adapters_of(model).adapted()}
    seen: list[torch.Tensor] = []
    down = layers["model.layers.1.mlp.down_proj"][0]
    handle = down.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    found = input_moments(model, layers, [batch(), batch()])
    handle.remove()
    rows = torch.cat([x[batch().attention_mask.bool()] for x in seen])
    moments = found["model.layers.1.mlp.down_proj"]
    assert moments.rows == len(rows) == 24
    assert_close(moments.second, rows.T @ rows / 24)
    attention = "model.layers.0.self_attn"
    assert found[f"{attention}.q_proj"] is found[f"{attention}.v_proj"]
    assert found[f"{attention}.q_proj"].rows == 24
    assert found[f"{attention}.o_proj"] is not found[f"{attention}.q_proj"]
    assert not any(module._forward_pre_hooks for module, _ in layers.values())


def test_a_change_that_no_input_shows_has_no_error_and_never_less():
    # one direction of inputs, and changes that are orthogonal to it but for a rounding
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        direction, change = torch.randn(33, generator=generator), torch.randn(4, 33, generator=generator)
        moments = Moments(32)
        moments.add(direction[:32].repeat(3, 1))
        direction[32] = 1
        change -= (change @ direction)[:, None] * direction / direction.square().sum()
        assert 0 <= layer_error(change, moments) < 1e-4
