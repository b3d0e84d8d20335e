"""A packed row is nothing but its sequences side by side."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import (
    AttentionMaskInterface,
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen3Config,
    T5Config,
)

from lorasmith.errors import DataError
from lorasmith.models.activation_checkpointing import checkpoint_activations_
from lorasmith.models.packed_attention import (
    PACKED,
    enable_packing,
    packed_attention,
    segment_mask,
    supports_packing,
)

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 60,
    "pad_token_id": 0,
}
CAUSAL = {
    "multi-head": LlamaConfig(**SMALL, num_key_value_heads=4),
    "grouped": LlamaConfig(**SMALL, num_key_value_heads=2),
    "window": MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=3),
    "normed": Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8),
    "learned-positions": GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=60, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0
    ),
}
LENGTHS = {"ragged": [5, 1, 7, 4], "equal": [6, 6, 6]}


def build(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def packed(sequences):
    lengths = torch.tensor([len(s) for s in sequences])
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).int()
    return {
        "input_ids": torch.cat(sequences)[None],
        "position_ids": torch.cat([torch.arange(len(s)) for s in sequences])[None],
        "attention_mask": segment_mask(cu_seqlens),
    }


def sequences(lengths):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(1, 60, (length,), generator=generator) for length in lengths]


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("config", CAUSAL.values(), ids=CAUSAL)
def test_logits_and_gradients_equal_the_sequences_alone(config, checkpointing, lengths):
    model = build(config)
    parts = sequences(lengths)
    alone = torch.cat([model(input_ids=s[None]).logits for s in parts], 1)
    weights = torch.randn(alone.shape, generator=torch.Generator().manual_seed(1))
    parameters = list(model.parameters())
    wanted = torch.autograd.grad((alone * weights).sum(), parameters)
    assert enable_packing(model) is None
    if checkpointing:
        checkpoint_activations_(model)
        model.train()
    logits = model(**packed(parts), use_cache=False).logits
    # f32: the same sums in another order
    assert_close(logits, alone, rtol=1e-4, atol=2e-5)
    for got, want in zip(torch.autograd.grad((logits * weights).sum(), parameters), wanted, strict=True):
        assert_close(got, want, rtol=1e-3, atol=1e-4 * float(want.abs().max()) + 1e-6)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_changing_one_segment_leaves_the_others_bit_equal(lengths):
    model = build(CAUSAL["grouped"])
    assert enable_packing(model) is None
    parts = sequences(lengths)
    before = model(**packed(parts), use_cache=False).logits.split(lengths, 1)
    parts[0] = (parts[0] + 7) % 60
    after = model(**packed(parts), use_cache=False).logits.split(lengths, 1)
    assert not torch.equal(before[0], after[0])
    for old, new in zip(before[1:], after[1:], strict=True):
        assert torch.equal(old, new)


def test_transformers_own_way_of_naming_segments_works_too():
    model = build(CAUSAL["grouped"])
    assert enable_packing(model) is None
    arguments = packed(sequences([5, 7]))
    wanted = model(**arguments, use_cache=False).logits
    cu_seqlens = arguments.pop("attention_mask").flatten()
    got = model(**arguments, cu_seq_lens_q=cu_seqlens, cu_seq_lens_k=cu_seqlens, use_cache=False).logits
    assert torch.equal(got, wanted)


def test_no_mask_of_tokens_by_tokens_is_built(monkeypatch):
    model = build(CAUSAL["grouped"])
    assert enable_packing(model) is None

    def forbidden(*arguments, **keywords):
        raise AssertionError("a dense mask was asked for")

    monkeypatch.setitem(AttentionMaskInterface._global_mapping, PACKED, forbidden)
    model(**packed(sequences([5, 7])), use_cache=False)
    with pytest.raises(AssertionError, match="dense mask"):
        model(input_ids=torch.ones(2, 4, dtype=torch.long), attention_mask=torch.tensor([[1, 1, 1, 0]] * 2))


def test_padded_rows_and_generation_are_as_with_sdpa():
    model = build(CAUSAL["grouped"])
    padded = {
        "input_ids": torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]),
    }
    wanted = model(**padded).logits
    text = model.generate(**padded, max_new_tokens=5, do_sample=False)
    assert enable_packing(model) is None
    assert torch.equal(model(**padded).logits, wanted)
    assert torch.equal(model.generate(**padded, max_new_tokens=5, do_sample=False), text)


def test_an_encoder_gives_each_sequence_the_states_it_has_alone():
    torch.manual_seed(0)
    model = AutoModel.from_config(BertConfig(**SMALL)).eval()
    parts = sequences([5, 3, 8])
    alone = torch.cat([model(input_ids=s[None]).last_hidden_state for s in parts], 1)
    assert enable_packing(model) is None
    assert_close(model(**packed(parts)).last_hidden_state, alone, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: build(MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=60)), "recurrent"),
        (lambda: build(Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8)), "caps its attention"),
        (lambda: build(BloomConfig(hidden_size=32, n_layer=1, n_head=4, vocab_size=60)), "no position ids"),
        (lambda: AutoModel.from_config(T5Config(d_model=32, d_ff=32, num_layers=1, num_heads=2)), "encoder-decoder"),
        (lambda: nn.Linear(2, 2), "not a transformers model"),
    ],
    ids=["mamba", "gemma2", "bloom", "t5", "plain"],
)
def test_a_model_that_cannot_be_packed_says_why_and_is_left_alone(model, reason):
    torch.manual_seed(0)
    model = model()
    before = getattr(getattr(model, "config", None), "_attn_implementation", None)
    assert reason in supports_packing(model)
    assert reason in enable_packing(model)
    assert getattr(getattr(model, "config", None), "_attn_implementation", None) == before


def test_asking_leaves_the_model_as_it_was():
    model = build(CAUSAL["grouped"]).train()
    before = model.config._attn_implementation
    assert supports_packing(model) is None
    assert model.config._attn_implementation == before
    assert all(module.training for module in model.modules())


def test_the_packed_name_does_not_reach_a_saved_configuration():
    model = build(CAUSAL["grouped"])
    assert enable_packing(model) is None
    assert PACKED not in model.config.to_json_string(use_diff=False)


def test_a_pickled_model_with_packed_attention_runs_in_a_new_process(tmp_path):
    model = build(CAUSAL["grouped"])
    assert enable_packing(model) is None
    torch.save(model, tmp_path / "model.pt")
    code = (
        "import sys, torch, lorasmith\n"
        "model = torch.load(sys.argv[1], weights_only=False)\n"
        "print(model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().item())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.pt")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        here = float(model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum())
    assert float(done.stdout) == pytest.approx(here, abs=1e-3)


def test_segments_that_do_not_cover_the_row_are_refused():
    model = build(CAUSAL["grouped"])
    assert enable_packing(model) is None
    arguments = packed(sequences([5, 7]))
    arguments["attention_mask"] = segment_mask(torch.tensor([0, 5, 11]))
    with pytest.raises(DataError, match="segments end at 11"):
        model(**arguments, use_cache=False)


def test_under_autocast_f32_queries_attend_in_autocasts_type():
    query, key = (torch.randn(1, 4, 6, 8) for _ in range(2))
    value = torch.randn(1, 4, 6, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = packed_attention(nn.Module(), query, key, value, segment_mask(torch.tensor([0, 2, 6])))
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize("learned", [True, False])
def test_an_additive_mask_in_16_bits_acts_and_learns_as_in_float32(learned):
    # float16 is widened on every CPU
    torch.manual_seed(0)
    operands = [torch.randn(1, 4, 6, 8).half().requires_grad_() for _ in range(3)]
    bias = torch.randn(1, 4, 6, 6).half().requires_grad_(learned)
    wide = [each.detach().float().requires_grad_() for each in operands]
    wide_bias = bias.detach().float().requires_grad_(learned)
    y, _ = packed_attention(nn.Module(), *operands, bias)
    expected = nn.functional.scaled_dot_product_attention(*wide, attn_mask=wide_bias).transpose(1, 2)
    y.float().square().sum().backward()
    expected.square().sum().backward()
    # a few roundings to f16
    assert_close(y.float(), expected, atol=4e-3, rtol=4e-3)
    pairs = [*zip(operands, wide, strict=True), *([(bias, wide_bias)] if learned else [])]
    for own, other in pairs:
        assert_close(own.grad.float(), other.grad, atol=2e-2, rtol=2e-2)
    with torch.no_grad():
        assert_close(packed_attention(nn.Module(), *operands, bias)[0], y)
