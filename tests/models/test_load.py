"""The loader gives the model that transformers would give, quantized as it arrives, or one line that says why not."""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from lorasmith.errors import FormatError, ModelError
from lorasmith.models.load import load
from lorasmith.quantized import QuantizedLinear, Scheme, quantize_module

SCHEMES = [Scheme(), Scheme("fp4", 128, False), Scheme("int4", 32), Scheme("int8")]


def ids(model):
    return torch.arange(10)[None] % model.config.vocab_size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "tied", "gpt2", "mixtral"])
def test_a_dense_model_is_bit_equal_to_transformers_own(saved, kind, dtype):
    folder = saved(kind, dtype)
    ours = load(folder).model
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert ours.dtype == dtype
    assert {name for name, _ in ours.named_buffers()} == {name for name, _ in theirs.named_buffers()}
    assert torch.equal(ours(ids(ours)).logits, theirs(ids(theirs)).logits)
    assert not ours.training


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
def test_every_layer_holds_what_quantizing_the_dense_one_gives(saved, kind, scheme):
    folder = saved(kind)
    ours = load(folder, scheme=scheme).model
    dense = dict(AutoModelForCausalLM.from_pretrained(folder).named_modules())
    layers = {name: module for name, module in ours.named_modules() if isinstance(module, QuantizedLinear)}
    assert len(layers) >= 8
    for name, layer in layers.items():
        twin = quantize_module(dense[name], scheme)
        for part, stored in layer.stored.items():
            assert torch.equal(stored, twin.stored[part])
            assert not stored.requires_grad
        assert layer.bias is None or torch.equal(layer.bias, dense[name].bias)


def test_a_quantized_model_computes_with_its_dequantized_weights(saved):
    folder = saved("llama")
    ours = load(folder, scheme=Scheme()).model
    dense = AutoModelForCausalLM.from_pretrained(folder)
    for name, module in ours.named_modules():
        if isinstance(module, QuantizedLinear):
            dense.get_submodule(name).weight.data = module.dequantize()
    # the same products in f32, perhaps in another order
    assert_close(ours(ids(ours)).logits, dense(ids(dense)).logits, atol=1e-5, rtol=1e-5)


def test_head_embeddings_and_norms_stay_dense(saved):
    model = load(saved("llama"), scheme=Scheme()).model
    assert type(model.lm_head) is torch.nn.Linear
    assert type(model.model.embed_tokens) is torch.nn.Embedding


def test_tied_weights_stay_one_parameter(saved):
    model = load(saved("tied"), scheme=Scheme()).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_skipped_layers_stay_dense_and_are_reported(saved):
    loaded = load(saved("llama"), scheme=Scheme(), skip=["down_proj", r"model\.layers\.0\.self_attn\..*"])
    dense = {name for name, module in loaded.model.named_modules() if type(module) is torch.nn.Linear}
    assert dense == {
        "lm_head",
        *(f"model.layers.{layer}.mlp.down_proj" for layer in (0, 1)),
        *(f"model.layers.0.self_attn.{name}_proj" for name in "qkvo"),
    }


def test_the_type_of_the_dense_parts_can_be_chosen(saved):
    folder = saved("llama", torch.bfloat16)
    model = load(folder, dtype="float32", scheme=Scheme()).model
    assert model.model.norm.weight.dtype == torch.float32
    assert model.model.layers[0].mlp.up_proj.dtype == torch.float32


def test_a_float16_model_is_loaded_as_float32_on_a_cpu(saved):
    assert load(saved("llama", torch.float16), device="cpu").model.dtype == torch.float32


def test_the_compute_type_reaches_the_layers(saved):
    model = load(saved("llama"), scheme=Scheme(), compute_dtype="bfloat16").model
    assert model.model.layers[0].mlp.up_proj.compute_dtype == torch.bfloat16


def test_a_classifier_gets_a_new_head_on_an_encoder_and_says_so(saved):
    folder = saved("bert")
    loaded = load(folder, task="classification", num_labels=3, scheme=Scheme())
    assert loaded.report.initialised == ("classifier.bias", "classifier.weight")
    assert loaded.model.classifier.weight.shape == (3, 64)
    assert type(loaded.model.classifier) is torch.nn.Linear
    embedding = AutoModel.from_pretrained(folder).embeddings.word_embeddings.weight
    assert torch.equal(loaded.model.bert.embeddings.word_embeddings.weight, embedding)


def test_a_new_head_follows_the_seed_and_leaves_the_callers_random_state(saved):
    folder = saved("bert")
    state = torch.get_rng_state()
    first, again, other = (load(folder, task="classification", seed=seed).model.classifier.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_saved_classifier_keeps_its_head(saved):
    folder = saved("classifier")
    loaded = load(folder, task="classification")
    theirs = AutoModelForSequenceClassification.from_pretrained(folder)
    assert torch.equal(loaded.model.classifier.weight, theirs.classifier.weight)
    assert loaded.report.initialised == ()


def test_a_head_of_another_size_is_made_anew_and_reported(saved):
    loaded = load(saved("classifier"), task="classification", num_labels=5)
    assert loaded.report.initialised == ("classifier.bias", "classifier.weight")
    assert loaded.model.classifier.weight.shape == (5, 64)


def test_an_encoder_drops_the_head_and_reports_it(saved):
    loaded = load(saved("classifier"), task="encoder")
    assert loaded.report.ignored == ("classifier.bias", "classifier.weight")


def one_line(pattern, folder, error=ModelError, **keywords):
    with pytest.raises(error, match=pattern) as caught:
        load(folder, **keywords)
    assert "\n" not in str(caught.value)


def test_a_missing_weight_is_an_error_that_names_it(saved, edit_tensors):
    folder = saved("llama")
    edit_tensors(folder, lambda tensors: tensors.pop("model.layers.1.input_layernorm.weight"))
    one_line("lacks model.layers.1.input_layernorm.weight; the checkpoint is incomplete", folder)


@pytest.mark.parametrize("name", ["mlp.c_fc.weight", "mlp.c_fc.bias"])
def test_a_missing_part_of_a_quantized_layer_is_an_error_that_names_it(saved, edit_tensors, name):
    folder = saved("gpt2")
    edit_tensors(folder, lambda tensors: tensors.pop(f"transformer.h.1.{name}"))
    one_line("has no (weight|bias) for transformer.h.1.mlp.c_fc", folder, scheme=Scheme())


@pytest.mark.parametrize("scheme", [None, Scheme()], ids=str)
def test_a_weight_of_another_shape_is_an_error_that_names_both(saved, edit_config, scheme):
    folder = saved("tied")
    edit_config(folder, vocab_size=101)
    one_line(r"weight has the shape \[100, 128\], config.json asks for \[101, 128\]", folder, scheme=scheme)


def test_a_quantized_weight_of_another_shape_is_an_error_too(saved, edit_config):
    folder = saved("llama")
    edit_config(folder, intermediate_size=256)
    one_line("mlp.down_proj.weight has shape", folder, FormatError, scheme=Scheme())


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.mlp.up_proj.weight"])
@pytest.mark.parametrize("scheme", [None, Scheme()], ids=str)
def test_nan_in_the_weights_is_an_error_that_names_the_tensor(saved, edit_tensors, name, scheme):
    folder = saved("llama")
    edit_tensors(folder, lambda tensors: tensors[name].view(-1)[7:8].fill_(float("nan")))
    one_line(f"tensor {name} holds NaN or Inf", folder, scheme=scheme)


def test_what_int8_cannot_hold_is_an_error_that_names_the_tensor(saved, edit_tensors):
    folder = saved("llama")
    name = "model.layers.0.mlp.up_proj.weight"
    edit_tensors(folder, lambda tensors: tensors[name][3, 3].fill_(7e4))
    one_line(f"{name} holds values beyond 65504", folder, FormatError, scheme=Scheme("int8"))


def test_errors_leave_standard_error_alone(saved, edit_tensors, capfd):
    folder = saved("llama")
    edit_tensors(folder, lambda tensors: tensors.pop("model.norm.weight"))
    capfd.readouterr()
    with pytest.raises(ModelError):
        load(folder, scheme=Scheme())
    assert capfd.readouterr() == ("", "")


def test_an_unknown_task_and_an_impossible_one_are_refused(saved):
    folder = saved("llama")
    one_line("task 'causl' is unknown", folder, task="causl")


def test_an_unknown_architecture_is_refused_with_the_config_named(saved, edit_config):
    folder = saved("llama")
    edit_config(folder, model_type="llamb")
    one_line("config.json is not a config that transformers knows", folder)


def test_a_stored_scheme_other_than_the_one_asked_for_is_refused(saved, tmp_path):
    model = load(saved("llama"), scheme=Scheme("int4")).model
    model.save_pretrained(tmp_path / "int4")
    one_line("is already stored in int4, .* not nf4", tmp_path / "int4", scheme=Scheme())


def test_code_of_the_folder_runs_when_it_is_trusted(saved, edit_config):
    folder = saved("llama")
    (folder / "modeling_own.py").write_text(
        "from transformers import LlamaForCausalLM\n\n\nclass Own(LlamaForCausalLM):\n    marked = True\n"
    )
    edit_config(folder, auto_map={"AutoModelForCausalLM": "modeling_own.Own"})
    model = load(folder, scheme=Scheme(), trust_remote_code=True).model
    assert model.marked
    assert isinstance(model.model.layers[0].mlp.up_proj, QuantizedLinear)


def test_greedy_generation_of_a_real_model_is_letter_for_letter_as_expected(shared):
    folder = shared / "models" / "stories260k"
    loaded = load(folder, dtype="float32")
    start = torch.tensor([[loaded.tokenizer.bos_token_id]])
    made = loaded.model.generate(start, max_new_tokens=200, max_length=None, do_sample=False)
    expected = (folder / "expected_greedy_200.txt").read_text(encoding="utf-8")
    assert loaded.tokenizer.decode(made[0], skip_special_tokens=True).strip() == expected.strip()


def test_a_real_encoder_becomes_a_classifier(shared):
    loaded = load(shared / "models" / "minilm-l6-v2", task="classification", num_labels=2, scheme=Scheme())
    assert loaded.report.initialised == ("classifier.bias", "classifier.weight")
    batch = loaded.tokenizer(["a fine film"], return_tensors="pt")
    assert loaded.model(**batch).logits.shape == (1, 2)
