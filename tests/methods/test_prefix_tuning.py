"""A prefix is keys and values in front of those of every layer, however the layer is run."""

import copy

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, GPT2Config, MistralConfig, Qwen3Config

from lorasmith.attach import adapters_of, attach, load_adapter, save_adapter
from lorasmith.errors import AdapterError, AttachError
from lorasmith.methods.prefix_tuning import PrefixTuningConfig
from lorasmith.models.activation_checkpointing import checkpoint_activations_
from lorasmith.models.packed_attention import enable_packing, segment_mask
from tiny import IDS, bert, llama, logits, shake, t5

SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
# another order of the same f32 sums
TOLERANCE = {"atol": 2e-6, "rtol": 0}


def windowed(window=6):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(MistralConfig(**SMALL, **HEADS, sliding_window=window)).eval()


def wide_heads():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(Qwen3Config(**SMALL, **HEADS, head_dim=16)).eval()


def gpt2():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)).eval()


def prefixed(model, **fields):
    attach(model, PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM", **fields))
    return shake(model)


def greedy(model, ids, steps):
    for _ in range(steps):
        ids = torch.cat([ids, logits(model, ids)[:, -1:].argmax(-1)], 1)
    return ids


def packed(parts):
    bounds = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0)
    return {
        "input_ids": torch.cat(parts)[None],
        "position_ids": torch.cat([torch.arange(len(part)) for part in parts])[None],
        "attention_mask": segment_mask(bounds),
    }


PARTS = {
    "ragged": [IDS[0, :5], IDS[1, :1], IDS[1, :7]],
    "equal": [IDS[0, :6], IDS[1, :6], IDS[1, 1:7]],
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("projected", [False, True], ids=["bare", "projected"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("base", [llama, windowed, wide_heads])
def test_a_packed_row_equals_its_sequences_alone(base, checkpointing, projected, parts):
    model = prefixed(base(), prefix_projection=projected)
    parameters = adapters_of(model).parameters("default")
    alone = [model(input_ids=part[None]).logits for part in parts]
    wanted = torch.autograd.grad(torch.cat(alone, 1).square().sum(), parameters)
    assert enable_packing(model) is None
    if checkpointing:
        checkpoint_activations_(model.train())
    found = model(**packed(parts), use_cache=False).logits
    assert_close(found, torch.cat(alone, 1), **TOLERANCE)
    gradients = torch.autograd.grad(found.square().sum(), parameters)
    # gradients are sums over all tokens
    assert all(torch.allclose(*pair, atol=2e-4) for pair in zip(gradients, wanted, strict=True))


def without_dropout(model):
    for module in model.modules():
        for name, value in vars(module).items():
            if name in ("dropout", "p") and isinstance(value, float):
                setattr(module, name, 0.0)
    return model


@pytest.mark.parametrize("base", [llama, gpt2, bert, t5])
def test_recomputed_layers_give_the_same_gradients(base):
    inputs = {"input_ids": IDS, "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2])}
    if base is t5:
        inputs["decoder_input_ids"] = IDS[:, :4]
    models = [without_dropout(prefixed(base(), prefix_projection=True)).train() for _ in range(2)]
    checkpoint_activations_(models[1])
    for model in models:
        model(**inputs).logits.square().sum().backward()
    for one, other in zip(*(adapters_of(model).parameters("default") for model in models), strict=True):
        assert one.grad.abs().max() > 0
        # another order of the same f32 sums
        assert_close(other.grad, one.grad, atol=1e-5, rtol=1e-5)


def test_a_recomputed_model_that_is_switched_off_is_the_base_again():
    model = llama()
    before = logits(model)
    checkpoint_activations_(prefixed(model).train())
    with adapters_of(model).disabled():
        assert torch.equal(logits(model), before)


@pytest.mark.parametrize("base", [llama, windowed, wide_heads])
def test_cached_generation_equals_recomputation(base):
    model = prefixed(base())
    made = model.generate(input_ids=IDS, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert torch.equal(made, greedy(model, IDS, 6))


def test_an_encoder_decoder_generates_with_a_cache_as_without():
    model = t5()
    attach(model, PrefixTuningConfig(num_virtual_tokens=4, task_type="SEQ_2_SEQ_LM"))
    shake(model, 0.5)
    mask = torch.ones_like(IDS)
    mask[1, 5:] = 0
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    options |= {"output_scores": True, "return_dict_in_generate": True}

    def scores(**more):
        return torch.stack(model.generate(input_ids=IDS, attention_mask=mask, **options, **more).scores)

    made = scores()
    # another order of the same f32 sums
    assert_close(made, scores(use_cache=False), atol=1e-5, rtol=0)
    with adapters_of(model).disabled():
        assert (made - scores()).abs().max() > 1e-3


def test_beams_share_the_prefix():
    model = prefixed(llama())
    options = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(
        model.generate(input_ids=IDS, **options), model.generate(input_ids=IDS, use_cache=False, **options)
    )


def test_left_padding_does_not_change_what_is_generated():
    model = prefixed(llama())
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), IDS[:1]], 1)
    mask = torch.ones_like(padded)
    mask[:, :3] = 0
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    made = model.generate(input_ids=padded, attention_mask=mask, **options)
    assert torch.equal(made[:, 3:], greedy(model, IDS[:1], 6))


def test_a_mask_proper_is_widened_as_a_mask_of_tokens():
    model = prefixed(llama())
    seen = torch.ones(7, 7, dtype=torch.bool).tril()[None, None]
    with torch.no_grad():
        added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        for mask in (seen, added):
            assert_close(model(input_ids=IDS[:1], attention_mask=mask).logits, logits(model, IDS[:1]), **TOLERANCE)


def test_a_cache_that_was_returned_goes_on():
    model = prefixed(llama())
    with torch.no_grad():
        first = model(input_ids=IDS[:, :4], use_cache=True)
        rest = model(input_ids=IDS[:, 4:], past_key_values=first.past_key_values).logits
    assert_close(rest, logits(model)[:, 4:], **TOLERANCE)


def test_no_cache_is_returned_where_none_was_asked_for():
    assert prefixed(llama())(input_ids=IDS, use_cache=False).past_key_values is None


def test_attentions_are_those_of_real_tokens():
    model = llama()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found = prefixed(model)(input_ids=IDS, output_attentions=True).attentions
    assert {weights.shape for weights in found} == {(2, 4, 7, 7)}
    # the prefix has the rest
    assert all((weights.sum(-1) < 1).all() for weights in found)


def test_a_static_cache_has_no_room_for_it():
    with pytest.raises(AttachError, match="no room for a prefix"):
        prefixed(llama()).generate(
            input_ids=IDS, max_new_tokens=2, cache_implementation="static", pad_token_id=0, disable_compile=True
        )


def test_keys_of_zero_change_attention_by_the_room_that_they_take():
    model, zero = llama(), llama()
    attach(zero, PrefixTuningConfig(num_virtual_tokens=4, init_weights="zero"))
    assert all(not p.any() for p in adapters_of(zero).parameters("default"))
    assert not torch.equal(logits(zero), logits(model))


def test_a_copy_of_the_model_has_a_prefix_of_its_own():
    model = prefixed(llama(), prefix_projection=True)
    model(input_ids=IDS).logits.sum().backward()
    twin = copy.deepcopy(model)
    before = logits(model)
    with torch.no_grad():
        for parameter in adapters_of(twin).parameters("default"):
            parameter.zero_()
    assert torch.equal(logits(model), before)
    assert not torch.equal(logits(twin), before)


def test_training_goes_on_from_a_file_unless_it_lacks_the_projection(tmp_path):
    save_adapter(prefixed(llama()), tmp_path / "bare")
    save_adapter(prefixed(llama(), prefix_projection=True), tmp_path / "projected")
    assert load_adapter(llama(), tmp_path / "bare", trainable=True).trainable()
    with pytest.raises(AdapterError, match="without the projection"):
        load_adapter(llama(), tmp_path / "projected", trainable=True)


def test_keys_of_another_size_are_refused_with_the_sizes_that_fit():
    model = prefixed(bert(), token_dim=32, num_attention_heads=2)
    with pytest.raises(AttachError, match="set num_attention_heads=4 and token_dim=32"):
        model(input_ids=IDS)
