"""A compiler sees the adapted model whole: no graph breaks, and every number is the one without it."""

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.testing import assert_close
from transformers import GenerationConfig
from transformers.generation import CompileConfig

from lorasmith.attach import adapters_of, attach, merge_in_place
from lorasmith.methods import SiteMethod, methods
from lorasmith.methods.lora import LoraConfig
from lorasmith.models.fused_block import fuse_blocks_
from lorasmith.ops import native
from lorasmith.quantized import Scheme
from tiny import IDS, bert, gpt2, llama, quantized, shake, t5

# torch.compile itself instantiates the autograd.Functions that it traces
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

# the compiler orders sums of f32 its own way
CLOSE = {"atol": 2e-6, "rtol": 2e-5}
NF4 = Scheme("nf4", double_quant=True)
BASES = {
    "dense": lambda model: model,
    "nf4": lambda model: quantized(model, NF4),
    "int8": lambda model: quantized(model, Scheme("int8")),
}
FIELDS = {"trainable_tokens": None, "ia3": {"feedforward_modules": []}, "shira": {"r": 2}}


class Layer(nn.Module):
    """One linear layer, since the compiler's time goes by layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.proj = nn.Linear(32, 48)

    def forward(self, x):
        return self.proj(x)


X = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()


def whole(model):
    """model in one graph, or an error."""
    return torch.compile(model, fullgraph=True, backend="aot_eager")


def trained(call, model, **inputs):
    """Output, and the gradients of all that trains, from the same random numbers on every call."""
    model.zero_grad()
    torch.manual_seed(3)
    output = call(**inputs) if inputs else call(X)
    output = getattr(output, "logits", output)
    if output.requires_grad:
        output.square().mean().backward()
    return output.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(model, **inputs):
    expected, gradients = trained(model, model, **inputs)
    made, found = trained(whole(model), model, **inputs)
    assert_close(made, expected, **CLOSE)
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert_close(found[name], gradient, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")
    return gradients


def adapted(base="nf4", **fields):
    model = BASES[base](Layer())
    attach(model, LoraConfig(r=4, target_modules=["proj"], **fields))
    return shake(model)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("fields", [{}, {"use_dora": True}, {"use_rslora": True}], ids=["lora", "dora", "rslora"])
def test_lora_on_every_base(base, fields):
    model = adapted(base, **fields)
    assert len(assert_same(model)) == len(list(adapters_of(model).parameters("default")))


@pytest.mark.parametrize("method", [name for name in methods.names() if isinstance(methods[name], SiteMethod)])
def test_every_method_that_acts_on_layers(method):
    fields = FIELDS.get(method, {})
    if fields is None or method == "lora":
        pytest.skip("it serves embeddings alone, or is tested above")
    model = quantized(Layer(), NF4)
    attach(model, methods[method].config_class(target_modules=["proj"], **fields))
    assert assert_same(shake(model))


def test_several_adapters_at_once():
    model = adapted()
    attach(model, LoraConfig(r=2, lora_alpha=3, target_modules=["proj"]), "second").activate(["default", "second"])
    assert len(assert_same(shake(model))) == 4


def test_dropout_draws_the_same_elements():
    model = adapted(lora_dropout=0.4)
    kept = model(X)
    assert not torch.equal(model.train()(X), kept)
    assert_same(model)


def test_an_adapter_that_is_off_or_merged():
    model = adapted("dense")
    before = whole(model)(X)
    with adapters_of(model).disabled():
        bare = whole(model)(X)
        assert torch.equal(bare, model(X))
    assert not torch.equal(bare, before)
    merge_in_place(model)
    # one rounding of the sum
    assert_close(whole(model)(X), before, **CLOSE)


def inputs_of(model):
    inputs = {"input_ids": IDS}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = IDS
    return inputs if model.config.model_type == "bert" else inputs | {"use_cache": False}


SHAPES = {
    "llama": (lambda: llama(num_hidden_layers=1), ["q_proj", "down_proj"]),
    "gpt2": (gpt2, r".*h\.1\.(attn\.c_attn|mlp\.c_proj)"),
    "bert": (bert, r".*layer\.1\..*(query|output\.dense)"),
    "t5": (lambda: t5(num_layers=1), r".*Attention\.v"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_whole_model(shape):
    build, targets = SHAPES[shape]
    model = build()
    # the targets alone are quantized, since every quantized layer costs the compiler a second
    attach(model, LoraConfig(r=4, target_modules=targets))
    for _, holder in adapters_of(model).adapted():
        holder.base_layer = quantized(nn.ModuleDict({"layer": holder.base_layer}), NF4)["layer"]
    gradients = assert_same(shake(model).train(shape == "llama"), **inputs_of(model))
    assert len(gradients) == 2 * len(list(adapters_of(model).adapted())) >= 4


@pytest.mark.skipif(native.extension() is None, reason="fused only where there is a kernel")
def test_fused_blocks_leave_the_fusing_to_the_compiler():
    model = llama(num_hidden_layers=1)
    attach(model, LoraConfig(r=4, target_modules=["q_proj", "gate_proj"]))
    assert len(fuse_blocks_(shake(model))) == 4
    assert_same(model, **inputs_of(model))


def test_steps_and_new_weights_in_place_compile_nothing_again():
    model = adapted()
    call = whole(model)
    trained(call, model)
    with torch.compiler.set_stance("fail_on_recompile"):
        for _ in range(3):
            trained(call, model)
            shake(model)
        before = call(X)
        shake(model)
        assert not torch.equal(call(X), before)
        assert_close(call(X), model(X), **CLOSE)


def test_each_choice_of_an_adapter_compiles_once():
    model = adapted()
    book = attach(model, LoraConfig(r=2, target_modules=["proj"]), "second")
    shake(model)
    call = whole(model)
    for name in ("default", "second"):
        book.activate(name)
        trained(call, model)
    assert counters["stats"]["unique_graphs"] == 2
    with torch.compiler.set_stance("fail_on_recompile"):
        for name in ("default", "second", "default"):
            book.activate(name)
            assert_close(trained(call, model)[0], model(X).detach(), **CLOSE)


def test_decoding_with_a_static_cache_gives_the_tokens_of_eager_decoding():
    model = llama(num_hidden_layers=1)
    attach(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    for _, holder in adapters_of(model).adapted():
        holder.base_layer = quantized(nn.ModuleDict({"layer": holder.base_layer}), NF4)["layer"]
    shake(model, 0.5)
    asked = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = model.generate(input_ids=IDS, **asked)
    compiled = CompileConfig(fullgraph=True, backend="aot_eager", mode=None)
    # transformers compiles on accelerators alone unless told
    compiled._compile_all_devices = True
    static = GenerationConfig(**asked, cache_implementation="static", compile_config=compiled)
    assert torch.equal(model.generate(input_ids=IDS, generation_config=static), expected)
    # the prompt is read without a graph; all steps after it share one
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
