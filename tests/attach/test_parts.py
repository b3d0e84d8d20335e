"""Parts of models by a word, on the architectures of transformers' families."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from lorasmith.attach import adapters_of, attach, save_adapter
from lorasmith.attach.parts import part, placed_layers
from lorasmith.errors import AttachError
from lorasmith.methods.bottleneck import BottleneckConfig
from lorasmith.methods.ia3 import IA3Config
from lorasmith.methods.lora import LoraConfig
from tiny import bert, gpt2, llama, logits, quantized, shake, t5

# last names of the linear layers of attention and of the feed-forward, in the modules that transformers builds
FAMILIES = {
    "llama": ({"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}),
    "qwen3": ({"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}),
    "gemma2": ({"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}),
    "phi": ({"q_proj", "k_proj", "v_proj", "dense"}, {"fc1", "fc2"}),
    "phi3": ({"qkv_proj", "o_proj"}, {"gate_up_proj", "down_proj"}),
    "gpt2": ({"c_attn", "c_proj"}, {"c_fc", "c_proj"}),
    "gptj": ({"q_proj", "k_proj", "v_proj", "out_proj"}, {"fc_in", "fc_out"}),
    "gpt_neo": ({"q_proj", "k_proj", "v_proj", "out_proj"}, {"c_fc", "c_proj"}),
    "gpt_neox": ({"query_key_value", "dense"}, {"dense_h_to_4h", "dense_4h_to_h"}),
    "falcon": ({"query_key_value", "dense"}, {"dense_h_to_4h", "dense_4h_to_h"}),
    "bloom": ({"query_key_value", "dense"}, {"dense_h_to_4h", "dense_4h_to_h"}),
    "opt": ({"q_proj", "k_proj", "v_proj", "out_proj"}, {"fc1", "fc2"}),
    "bert": ({"query", "key", "value", "dense"}, {"dense"}),
    "deberta-v2": ({"query_proj", "key_proj", "value_proj", "dense"}, {"dense"}),
    "distilbert": ({"q_lin", "k_lin", "v_lin", "out_lin"}, {"lin1", "lin2"}),
    "bart": ({"q_proj", "k_proj", "v_proj", "out_proj"}, {"fc1", "fc2"}),
    "t5": ({"q", "k", "v", "o"}, {"wi", "wo"}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_and_feed_forward_are_told_apart_and_make_up_the_layers(family):
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(family))
    attention, mlp = (part(model, word, False) for word in ("attention", "mlp"))
    assert tuple({path.rpartition(".")[2] for path in paths} for paths in (attention, mlp)) == FAMILIES[family]
    assert not set(attention) & set(mlp)
    numbered = {path for path in part(model, "all-linear", False) if any(p.isdigit() for p in path.split("."))}
    assert set(attention) | set(mlp) == numbered


@pytest.mark.parametrize("config", [LoraConfig, IA3Config, BottleneckConfig])
@pytest.mark.parametrize("base", [llama, bert, gpt2, t5])
def test_what_was_found_is_named_so_that_it_is_found_again(base, config):
    model = base()
    book = attach(model, config(target_modules="attention", layers="first-half"))
    found = [path for path, _ in book.sites("default")]
    again = attach(base(), type(book.configs["default"]).from_dict(book.configs["default"].to_dict()))
    assert [path for path, _ in again.sites("default")] == found
    assert {next(p for p in path.split(".") if p.isdigit()) for path in found} == {"0"}
    assert book.configs["default"].layers is None


def test_pefts_terms_are_used_where_it_has_them():
    config = attach(llama(num_hidden_layers=4), LoraConfig(target_modules="mlp", layers="last-half")).configs["default"]
    assert (config.target_modules, config.layers_to_transform) == (["down_proj", "gate_proj", "up_proj"], [2, 3])


@pytest.mark.parametrize("word", ["attention", "mlp"])
@pytest.mark.parametrize("base", [llama, bert, t5])
def test_peft_loads_what_was_placed_by_words(base, word, tmp_path):
    peft = pytest.importorskip("peft")
    model = base()
    attach(model, LoraConfig(target_modules=word, layers="last-1"))
    shake(model)
    save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(base(), tmp_path)
    more = {"decoder_input_ids": torch.tensor([[1, 2]])} if base is t5 else {}
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        ours = model(input_ids=ids, **more).logits
        # another order of the same f32 sums
        torch.testing.assert_close(theirs(input_ids=ids, **more).logits, ours, atol=2e-6, rtol=0)
        with theirs.disable_adapter():
            assert (theirs(input_ids=ids, **more).logits - ours).abs().max() > 1e-4


def test_quantized_and_adapted_layers_are_parts_too():
    model = quantized(llama())
    attach(model, LoraConfig(target_modules="mlp"))
    attach(model, LoraConfig(target_modules="mlp"), "second")
    book = adapters_of(model)
    assert [path for path, _ in book.sites("second")] == [path for path, _ in book.sites("default")]
    assert logits(shake(model)).isfinite().all()


def test_a_module_of_that_name_is_an_expression_as_in_peft():
    model = nn.Sequential()
    model.add_module("mlp", nn.Linear(4, 4))
    assert [path for path, _ in attach(model, LoraConfig(target_modules="mlp")).sites("default")] == ["mlp"]


@pytest.mark.parametrize(
    ("place", "numbers"),
    [
        ("first-half", [0, 1]),
        ("last-half", [2, 3, 4]),
        ("first-1", [0]),
        ("last-2", [3, 4]),
        ("1-3", [1, 2, 3]),
        ("first-5", [0, 1, 2, 3, 4]),
    ],
)
def test_places_of_layers(place, numbers):
    assert placed_layers(place, 5) == numbers


@pytest.mark.parametrize("place", ["first-6", "last-9", "3-5", "3-2"])
def test_layers_that_are_not_there_are_refused(place):
    with pytest.raises(AttachError, match="the model has 5 layers"):
        placed_layers(place, 5)


def test_words_for_places_are_checked_when_they_are_written():
    with pytest.raises(AttachError, match="layers='middle'"):
        LoraConfig(layers="middle")


def test_numbers_and_places_of_layers_exclude_each_other():
    with pytest.raises(AttachError, match="say the same"):
        attach(llama(), LoraConfig(layers="last-1", layers_to_transform=[1]))


def test_a_model_without_such_a_part_says_so():
    with pytest.raises(AttachError, match="target_modules='attention': Sequential has no such part"):
        attach(nn.Sequential(nn.Linear(4, 4)), LoraConfig(target_modules="attention"))
