"""Attention with a fused rotary embedding against transformers' own, to the bit, and what stays as it was."""

import copy
import pickle

import pytest
import torch
from tests.tiny import IDS, llama, logits, shake
from torch.testing import assert_close
from transformers import AutoModelForCausalLM
from transformers.models.cohere.configuration_cohere import CohereConfig
from transformers.models.esm.modeling_esm import apply_rotary_pos_emb as esms
from transformers.models.gemma3n.modeling_gemma3n import apply_rotary_pos_emb as gemma3ns
from transformers.models.glm.configuration_glm import GlmConfig
from transformers.models.gpt_oss.modeling_gpt_oss import apply_rotary_pos_emb as gpt_osss
from transformers.models.llama import modeling_llama
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.olmo2.configuration_olmo2 import Olmo2Config
from transformers.models.olmo2.modeling_olmo2 import apply_rotary_pos_emb as olmo2s
from transformers.models.phi3.configuration_phi3 import Phi3Config
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config

from lorasmith.models import fused_rotary
from lorasmith.models.fused_block import fuse_blocks_, split_blocks_
from lorasmith.models.fused_rotary import FusedAttention, RotaryRule
from lorasmith.ops import Rotation, native
from lorasmith.ops.library import NATIVE_KERNELS

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
HALF = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}
FAMILIES = {
    "llama": LlamaConfig(**SIZES),
    "qwen3": Qwen3Config(**SIZES),
    "olmo2": Olmo2Config(**SIZES),
    "phi3": Phi3Config(**SIZES, **HALF),
    "glm": GlmConfig(**SIZES, **HALF),
    "cohere": CohereConfig(**SIZES),
}

pytestmark = pytest.mark.skipif(native.extension() is None, reason="fused only where there is a kernel")


@pytest.fixture(autouse=True)
def served(monkeypatch):
    """As if the CPU had a kernel: the reference stands in its place."""
    monkeypatch.setitem(NATIVE_KERNELS, "rotary", {"cpu"})


@pytest.fixture
def calls(monkeypatch):
    """The shapes of q that the op was given by models."""
    seen = []
    own = fused_rotary.rotary

    def noted(q, *rest):
        seen.append(tuple(q.shape))
        return own(q, *rest)

    monkeypatch.setattr(fused_rotary, "rotary", noted)
    return seen


def fuse_attention_(model):
    """The rotary embeddings alone, so that results may be equal to the bit."""
    for module in fuse_blocks_(model):
        if not isinstance(module, FusedAttention):
            module.__class__ = module.own_class
    return model


def step(model):
    """Logits and all gradients."""
    model.zero_grad()
    out = model(input_ids=IDS).logits
    out.float().square().mean().backward()
    return [out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_the_models_own_to_the_bit_and_gradients_but_for_the_order_of_sums(family, dtype, calls):
    torch.manual_seed(0)
    model = shake(AutoModelForCausalLM.from_config(FAMILIES[family]).to(dtype))
    own = step(model)
    fuse_attention_(model)
    calls.clear()
    fused = step(model)
    # a call a layer
    assert len(calls) == 2
    assert len(fused) == len(own)
    assert torch.equal(fused[0], own[0])
    for mine, other in zip(fused, own, strict=True):
        # norms of heads sum over gradients that now lie in memory as q does
        atol = (2**-5 if dtype == torch.bfloat16 else 1e-6) * float(other.abs().max())
        assert_close(mine, other, atol=atol, rtol=0)


@pytest.mark.parametrize(
    "function, rule",
    [
        (modeling_llama.apply_rotary_pos_emb, RotaryRule(True, False, Rotation(), None)),
        (olmo2s, RotaryRule(True, False, Rotation(), Rotation(wide=True))),
        (esms, RotaryRule(True, False, Rotation(wide=True), Rotation(wide=True))),
        (gemma3ns, RotaryRule(False, False, Rotation(), None)),
        # its tables have an entry a pair, where all of a head is turned
        (gpt_osss, None),
        (lambda q, k, cos, sin: (q, k), None),
    ],
)
def test_a_rule_is_found_by_what_a_function_computes(function, rule):
    assert fused_rotary._rule_of(function) == rule


@pytest.mark.parametrize("heads_at", [1, 2])
def test_functions_of_one_tensor_and_heads_on_either_side_of_tokens_are_served(heads_at, calls):
    rule = fused_rotary._rule_of(gemma3ns)
    calls.clear()
    x, (cos, sin) = torch.randn(2, 3, 3, 8, requires_grad=True), torch.randn(2, 2, 3, 8)
    made = fused_rotary._turn(gemma3ns, rule, x, cos, sin, unsqueeze_dim=heads_at)
    assert torch.equal(made, gemma3ns(x, cos, sin, unsqueeze_dim=heads_at))
    assert len(calls) == 1


def test_nothing_else_of_transformers_sees_it(calls):
    model, other = llama(), llama()
    function, forward = modeling_llama.apply_rotary_pos_emb, modeling_llama.LlamaAttention.forward
    fuse_blocks_(model)
    calls.clear()
    step(model), step(other)
    assert len(calls) == 2
    assert modeling_llama.apply_rotary_pos_emb is function and modeling_llama.LlamaAttention.forward is forward
    split_blocks_(model)
    step(model)
    assert len(calls) == 2


def test_a_device_without_a_kernel_keeps_the_modules_own(monkeypatch):
    monkeypatch.setitem(NATIVE_KERNELS, "rotary", set())
    assert not any(isinstance(module, FusedAttention) for module in fuse_blocks_(llama()))


def test_calls_of_other_forms_and_types_go_to_the_function_that_was_there(calls):
    model = llama().double()
    own = logits(model)
    fuse_blocks_(model)
    calls.clear()
    assert torch.equal(logits(model), own)
    function = modeling_llama.apply_rotary_pos_emb
    rule = fused_rotary._rule_of(function)
    q, k = (torch.randn(2, heads, 3, 8, requires_grad=True) for heads in (2, 1))
    cos, sin = torch.randn(2, 2, 3, 8)
    for given, more in (((q, k, cos, sin, 1), {}), ((q, k), {"cos": cos, "sin": sin})):
        made, its = fused_rotary._turn(function, rule, *given, **more), function(*given, **more)
        assert all(torch.equal(mine, other) for mine, other in zip(made, its, strict=True))
    assert calls == []


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_fused_too(copied, calls):
    twin = copied(fuse_attention_(llama()))
    calls.clear()
    step(twin)
    assert len(calls) == 2
