"""The three placements against references written by hand: hooks on a bare model that compute the papers' formulas."""

import pytest
import torch
from torch.testing import assert_close

from lorasmith.attach import (
    adapters_of,
    attach,
    attach_content,
    content_of,
    load_adapter,
    merge_and_unload,
    save_adapter,
    unload,
)
from lorasmith.errors import AttachError
from lorasmith.methods.bottleneck import BottleneckConfig
from lorasmith.methods.lora import LoraConfig
from tiny import IDS, bert, gpt2, llama, logits, quantized, shake, t5

# another order of the same f32 sums
TOLERANCE = {"atol": 2e-6, "rtol": 0}
PLACES = {
    "houlsby": [f"model.layers.{layer}.{end}" for layer in (0, 1) for end in ("self_attn.o_proj", "mlp.down_proj")],
    "pfeiffer": [f"model.layers.{layer}.mlp.down_proj" for layer in (0, 1)],
    "parallel": [f"model.layers.{layer}.mlp" for layer in (0, 1)],
}


def adapted(placement, base=llama, **fields):
    model = base()
    attach(model, BottleneckConfig(placement=placement, bottleneck_size=6, scaling=0.7, **fields))
    return shake(model)


def by_hand(model, placement):
    """A bare llama whose modules at PLACES add what the papers add, with the tensors of model's adapter."""
    sites, plain = dict(adapters_of(model).sites("default")), llama()
    for path in PLACES[placement]:
        down, up = sites[path].adapter_down, sites[path].adapter_up

        def behind(module, inputs, y, down=down, up=up):
            read = inputs[0] if placement == "parallel" else y
            h = torch.relu(read @ down.weight.T + down.bias)
            return y + 0.7 * (h @ up.weight.T + up.bias)

        plain.get_submodule(path).register_forward_hook(behind)
    return plain


@pytest.mark.parametrize("placement", PLACES)
def test_each_placement_is_the_papers_formula(placement):
    model = adapted(placement)
    assert [path for path, _ in adapters_of(model).sites("default")] == PLACES[placement]
    wanted = logits(by_hand(model, placement))
    assert_close(logits(model), wanted, **TOLERANCE)
    assert (wanted - logits(llama())).abs().max() > 1e-2


@pytest.mark.parametrize("base", [llama, gpt2, t5])
def test_a_parallel_adapter_is_switched_off_saved_loaded_and_taken_off(base, tmp_path):
    more = {"decoder_input_ids": IDS[:, :3]} if base is t5 else {}

    def scores(model):
        with torch.no_grad():
            return model(input_ids=IDS, **more).logits

    before = scores(base())
    model = adapted("parallel", base)
    found = scores(model)
    assert not torch.equal(found, before)
    with adapters_of(model).disabled():
        assert torch.equal(scores(model), before)
    save_adapter(model, tmp_path)
    other = base()
    load_adapter(other, tmp_path)
    assert torch.equal(scores(other), found)
    assert torch.equal(scores(unload(model)), before)


@pytest.mark.parametrize("first", ["parallel", "lora"])
def test_layers_inside_an_adapted_block_take_adapters_of_their_own(first):
    """Whichever comes first, each acts, merges and leaves without the other."""
    configs = {
        "lora": LoraConfig(target_modules=["up_proj", "q_proj"], r=3),
        "parallel": BottleneckConfig(placement="parallel", bottleneck_size=6),
    }
    model = llama()
    for name in sorted(configs, key=lambda name: name != first):
        attach(model, configs[name], name)
        shake(model)
    book, alone = adapters_of(model), {}
    for name in configs:
        other = llama()
        attach_content(other, content_of(book, name), name)
        alone[name] = logits(other)
        book.activate(name)
        assert torch.equal(logits(model), alone[name])
    book.activate(["lora", "parallel"])
    assert not any(torch.equal(logits(model), value) for value in alone.values())
    book.activate("lora")
    merged = merge_and_unload(model)
    assert_close(logits(merged), alone["lora"], atol=1e-5, rtol=0)
    assert not [name for name, _ in merged.named_modules() if "adapter_" in name or "lora_" in name]


def test_the_second_to_leave_finds_its_layers_still_in_place():
    model = llama()
    attach(model, BottleneckConfig(placement="parallel"), "parallel")
    attach(model, LoraConfig(target_modules=["up_proj"]), "lora")
    adapters_of(model).remove("parallel")
    assert [path for path, _ in adapters_of(model).sites("lora")] == [f"model.layers.{n}.mlp.up_proj" for n in (0, 1)]
    names = {name for name, _ in unload(model).named_modules()}
    assert names == {name for name, _ in llama().named_modules()}


def test_parallel_adapters_learn_beside_quantized_layers():
    model = quantized(llama())
    book = attach(model, BottleneckConfig(placement="parallel"))
    shake(model)(input_ids=IDS).logits.sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in book.parameters("default"))


def test_a_parallel_adapter_may_stand_beside_one_projection():
    model = llama()
    book = attach(model, BottleneckConfig(placement="parallel", target_modules=["q_proj"], bottleneck_size=4))
    site = book.sites("default")[0][1]
    assert (site.adapter_down.in_features, site.adapter_up.out_features) == (32, 32)


def test_pfeiffers_adapter_leaves_the_output_of_berts_attention_alone():
    paths = [path for path, _ in adapters_of(adapted("pfeiffer", bert)).sites("default")]
    assert paths == [f"bert.encoder.layer.{layer}.output.dense" for layer in (0, 1)]


def test_a_family_whose_feed_forward_is_no_module_says_so():
    with pytest.raises(AttachError, match="no module that is the whole feed-forward is known for model type 'bert'"):
        attach(bert(), BottleneckConfig(placement="parallel"))


def test_an_unknown_placement_lists_the_choices():
    with pytest.raises(AttachError, match="'before' is not one of houlsby, pfeiffer, parallel"):
        BottleneckConfig(placement="before")
