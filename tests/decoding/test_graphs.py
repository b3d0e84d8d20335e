"""Tokens from replayed steps are the model's own, whatever acts, and nothing of a step bypasses its buffers."""

from itertools import combinations

import pytest
import torch
from torch.testing import assert_close
from transformers import DynamicCache, GenerationConfig, MistralConfig, MistralForCausalLM, StaticCache

from lorasmith import get_peft_model
from lorasmith.attach import adapters_of, attach
from lorasmith.decoding import decoding_graphs
from lorasmith.decoding.step import RecordedStep
from lorasmith.errors import DeviceError, ModelError
from lorasmith.methods.ia3 import IA3Config
from lorasmith.methods.loha import LoHaConfig
from lorasmith.methods.lora import LoraConfig
from lorasmith.methods.oft import OFTConfig
from lorasmith.methods.prompt_tuning import PromptTuningConfig
from lorasmith.methods.shira import ShiraConfig
from lorasmith.quantized import Scheme
from tape import Tape
from tiny import IDS, bert, gpt2, llama, mixtral, quantized, shake, t5

NEW = 4
ONE = IDS[:1]
# rows of 7, 4 and 2 tokens, padded on the left
PADDED = torch.tensor([[5, 17, 42, 3, 9, 60, 11], [0, 0, 0, 21, 50, 1, 7], [0, 0, 0, 0, 0, 33, 8]])
MASK = (PADDED != 0).long()


def lora(**changes):
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], **changes)


def lively(**changes):
    """A model whose tokens depend on what it read; small weights would repeat one."""
    return llama(initializer_range=0.3, **({"num_hidden_layers": 1} | changes))


def adapted(model=None, config=None):
    """One adapter that acts, large enough to change tokens."""
    model = lively() if model is None else model
    attach(model, config or lora())
    return shake(model, 0.3).eval()


def generated(model, ids=ONE, **settings):
    """Tokens [B, NEW] and the logits that they were chosen by [NEW, B, V]."""
    settings = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None} | settings
    torch.manual_seed(1)
    made = model.generate(input_ids=ids, return_dict_in_generate=True, output_logits=True, **settings)
    return made.sequences[:, ids.shape[1] :], torch.stack(made.logits)


def assert_alike(found, expected):
    assert found[0].tolist() == expected[0].tolist()
    # sums over a longer cache, most of it masked, are ordered otherwise
    assert_close(found[1], expected[1], atol=2e-5, rtol=2e-5)


BASES = {
    "dense": lambda: lively(num_hidden_layers=2),
    "bf16": lambda: lively().bfloat16(),
    "nf4": lambda: quantized(lively(hidden_size=64, intermediate_size=64)),
    "int8": lambda: quantized(lively(), Scheme("int8")),
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("with_adapter", [True, False], ids=["lora", "bare"])
def test_tokens_are_those_of_plain_generation(base, with_adapter):
    model = adapted(BASES[base]()) if with_adapter else BASES[base]().eval()
    expected, tape = generated(model), Tape()
    with decoding_graphs(model, tape):
        found = generated(model)
    assert found[0].tolist() == expected[0].tolist()
    # inputs that are rounded to 8 bits, or to bf16, carry the last place of a sum on
    if base not in ("bf16", "int8"):
        assert_alike(found, expected)
    assert (tape.recorded, tape.replayed) == (1, NEW - 1)


def test_sampling_draws_the_same_tokens_from_the_same_seed():
    model, tape = adapted(), Tape()
    sampling = {"do_sample": True, "temperature": 1.7, "top_p": 0.9, "top_k": 0}
    expected = generated(model, **sampling)
    with decoding_graphs(model, tape):
        assert_alike(generated(model, **sampling), expected)
    assert tape.replayed == NEW - 1


def test_rows_padded_on_the_left_and_beams():
    model, tape = adapted(), Tape()
    expected = generated(model, PADDED, attention_mask=MASK)
    beams = {"num_beams": 3, "num_return_sequences": 2, "output_logits": False, "output_scores": True}
    wanted = model.generate(PADDED, attention_mask=MASK, max_new_tokens=NEW, pad_token_id=0, **beams)
    with decoding_graphs(model, tape):
        assert_alike(generated(model, PADDED, attention_mask=MASK), expected)
        found = model.generate(PADDED, attention_mask=MASK, max_new_tokens=NEW, pad_token_id=0, **beams)
    assert found.tolist() == wanted.tolist()
    assert (tape.recorded, tape.replayed) == (2, 2 * (NEW - 1))


def test_prompts_of_other_lengths_share_a_recording():
    model, tape = adapted(), Tape()
    prompts = [IDS[:1, :3], torch.arange(40)[None], IDS[:1, :1]]
    expected = [generated(model, ids) for ids in prompts]
    with decoding_graphs(model, tape):
        for ids, wanted in zip(prompts, expected, strict=True):
            assert_alike(generated(model, ids), wanted)
    assert tape.recorded == 1


def two_adapters():
    model = lively()
    attach(model, lora(), "a")
    attach(model, lora(lora_alpha=3), "b")
    book = adapters_of(model)
    for number, name in enumerate(("a", "b"), 1):
        book.activate([name])
        shake(model, 0.3 * number)
    return model.eval(), book


def test_what_acts_has_recordings_of_its_own():
    model, book = two_adapters()
    acts = [["a"], ["b"], ["a", "b"]]

    def answers():
        for names in acts:
            book.activate(names)
            yield generated(model)
        with book.disabled():
            yield generated(model)

    expected, tape = list(answers()), Tape()
    assert all((one[1] - other[1]).abs().max() > 0.1 for one, other in combinations(expected, 2))
    with decoding_graphs(model, tape):
        for _ in range(2):
            for found, wanted in zip(answers(), expected, strict=True):
                assert_alike(found, wanted)
    assert tape.recorded == 4


def test_adapters_switched_between_two_tokens():
    model, book = two_adapters()

    class Switch:
        """A streamer that lets the other adapter act from the second token on."""

        def __init__(self):
            self.seen = 0

        def put(self, tokens):
            self.seen += 1
            book.activate(["a"] if self.seen < 3 else ["b"])

        def end(self):
            pass

    expected, tape = generated(model, streamer=Switch()), Tape()
    with decoding_graphs(model, tape):
        assert_alike(generated(model, streamer=Switch()), expected)
    assert (tape.recorded, tape.replayed) == (2, NEW - 1)


def test_merging_and_unmerging_are_noticed():
    model = get_peft_model(lively(), lora())
    shake(model, 0.3).eval()
    expected, bare = generated(model), generated(model.get_base_model(), num_beams=1)
    with decoding_graphs(model, Tape()):
        assert_alike(generated(model), expected)
        model.merge_adapter()
        # a merge rounds once more
        assert generated(model)[0].tolist() == expected[0].tolist()
        model.unmerge_adapter()
        assert_alike(generated(model), expected)
        with model.disable_adapter():
            assert generated(model)[0].tolist() != expected[0].tolist()
    assert_alike(generated(model), bare)


@pytest.mark.parametrize("change", ["in place", "scaling", "another tensor"])
def test_changed_weights_are_noticed(change):
    model, tape = adapted(config=lora(use_dora=True)), Tape()
    (_, site), *_ = adapters_of(model).sites("default")
    with decoding_graphs(model, tape):
        before = generated(model)
        with torch.no_grad():
            if change == "in place":
                next(site.parameters()).mul_(-2)
            elif change == "scaling":
                site.update.scaling *= -2
            else:
                model.lm_head.weight = torch.nn.Parameter(-model.lm_head.weight)
        found = generated(model)
    expected = generated(model)
    assert (expected[1] - before[1]).abs().max() > 1e-3
    assert_alike(found, expected)
    assert tape.recorded == 2


@pytest.mark.parametrize("name", ["input_ids", "position_ids", "attention_mask"])
def test_an_input_that_bypassed_the_buffers_would_show(name, monkeypatch):
    model = adapted()
    expected, fill = generated(model), RecordedStep._fill

    def filled_once(self, inputs):
        inputs.tensors = {key: value for key, value in inputs.tensors.items() if key[0] != name or self.first}
        self.first = False
        fill(self, inputs)

    monkeypatch.setattr(RecordedStep, "first", True, raising=False)
    monkeypatch.setattr(RecordedStep, "_fill", filled_once)
    with decoding_graphs(model, Tape()):
        found = generated(model)
    assert_close(found[1][:2], expected[1][:2], atol=2e-5, rtol=2e-5)
    assert (found[1][2:] - expected[1][2:]).abs().max() > 1e-3


def warned(caplog):
    return [record.message for record in caplog.records if "CUDA graphs" in record.message]


def hooked():
    model = adapted()
    model.model.layers[0].register_forward_hook(lambda *_: None)
    return model


def prompted():
    model = lively()
    attach(model, PromptTuningConfig(num_virtual_tokens=3))
    return model.eval()


def dropping():
    model = adapted(config=lora(lora_dropout=0.3))
    adapters_of(model).model.train()
    return model


OBSTACLES = {
    "encoder-decoder": (t5, {}, "T5ForConditionalGeneration has no static cache"),
    "a soft prompt": (prompted, {}, "a soft prompt acts"),
    "training mode": (dropping, {}, "in training mode"),
    "a hook": (hooked, {}, "model.layers.0 has a forward hook"),
    "no cache": (adapted, {"use_cache": False}, "which cache to use, or none"),
    "its own cache": (adapted, {"cache_implementation": "dynamic"}, "which cache to use"),
    "dynamic cache": (adapted, {"past_key_values": DynamicCache}, "the cache is a DynamicCache"),
    "prompt lookup": (adapted, {"prompt_lookup_num_tokens": 2}, "steps of changing lengths"),
    "a growing rope": (
        lambda: adapted(lively(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})),
        {},
        "wait for aten._local_scalar_dense",
    ),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_cannot_be_recorded_decodes_as_before_and_says_why_once(name, caplog):
    make, settings, why = OBSTACLES[name]
    model, tape = make(), Tape()

    def tokens():
        torch.manual_seed(3)
        fresh = {key: value() if isinstance(value, type) else value for key, value in settings.items()}
        return model.generate(ONE, max_new_tokens=NEW, do_sample=False, pad_token_id=0, **fresh).tolist()

    expected = tokens()
    with decoding_graphs(model, tape):
        assert tokens() == tokens() == expected
    assert tape.replayed == 0
    (message,) = warned(caplog)
    assert why in message


def test_a_model_without_obstacles_says_nothing(caplog):
    model = adapted()
    with decoding_graphs(model, Tape()):
        generated(model)
    assert warned(caplog) == []


def test_a_cache_that_was_kept_never_changes():
    model = adapted()
    settings = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with decoding_graphs(model, Tape()):
        kept = model.generate(ONE, return_dict_in_generate=True, **settings)
        before = [layer.keys.clone() for layer in kept.past_key_values.layers]
        model.generate(IDS[1:], **settings)
        for layer, keys in zip(kept.past_key_values.layers, before, strict=True):
            assert torch.equal(layer.keys, keys)
        # and it may be gone on with
        longer = model.generate(kept.sequences, past_key_values=kept.past_key_values, **settings)
    expected = model.generate(ONE, **settings | {"max_new_tokens": 2 * NEW})
    assert longer.tolist() == expected.tolist()


def test_outputs_are_the_callers_own():
    model = adapted()
    cache = StaticCache(model.config, max_cache_len=12)
    with torch.no_grad(), decoding_graphs(model, Tape()):
        model(input_ids=ONE, past_key_values=cache)
        steps = [
            model(input_ids=torch.tensor([[token]]), past_key_values=cache, output_hidden_states=True)
            for token in (5, 9)
        ]
        first, second = (step.logits.clone() for step in steps)
        model(input_ids=torch.tensor([[3]]), past_key_values=cache, output_hidden_states=True)
    assert torch.equal(steps[0].logits, first) and torch.equal(steps[1].logits, second)
    assert steps[0].past_key_values is cache
    expected = model(input_ids=torch.cat([ONE, torch.tensor([[5, 9]])], 1), output_hidden_states=True)
    assert_close(second[:, -1], expected.logits[:, -1], atol=2e-5, rtol=2e-5)
    assert_close(steps[1].hidden_states[1][:, -1], expected.hidden_states[1][:, -1], atol=2e-5, rtol=2e-5)


def test_the_model_is_its_own_again_afterwards():
    model = adapted()
    before = set(vars(model))
    with pytest.raises(ZeroDivisionError), decoding_graphs(model, Tape()):
        raise ZeroDivisionError
    assert set(vars(model)) == before
    assert model.forward.__func__ is type(model).forward


def test_a_block_within_a_block_is_the_outer_one():
    model, outer, inner = adapted(), Tape(), Tape()
    with decoding_graphs(model, outer):
        with decoding_graphs(model, inner):
            generated(model)
        generated(model)
    assert (outer.recorded, outer.replayed, inner.recorded) == (1, 2 * (NEW - 1), 0)


def test_settings_of_the_caller_stay_his_own():
    model, tape = adapted(), Tape()
    config = GenerationConfig(max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    expected = model.generate(ONE, generation_config=config)
    before = config.to_dict()
    with decoding_graphs(model, tape):
        assert model.generate(ONE, generation_config=config).tolist() == expected.tolist()
    assert config.to_dict() == before
    assert tape.replayed


@pytest.mark.parametrize("window", [3, 64])
def test_sliding_windows_until_they_are_full(window, caplog):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    model = MistralForCausalLM(MistralConfig(**sizes, **heads, sliding_window=window)).eval()
    expected, tape = generated(model, IDS[:, :2]), Tape()
    with decoding_graphs(model, tape):
        for _ in range(2):
            assert_alike(generated(model, IDS[:, :2]), expected)
    # a window of 3 is full behind two tokens of the prompt and one step
    assert tape.replayed == 2 * (NEW - 1 if window > NEW else 1)
    assert bool(warned(caplog)) == (window < NEW)


@pytest.mark.parametrize("make", [gpt2, mixtral], ids=["gpt2", "mixtral"])
def test_other_architectures(make):
    model, tape = shake(make(), 0.3).eval(), Tape()
    expected = generated(model)
    with decoding_graphs(model, tape):
        assert_alike(generated(model), expected)
    assert tape.recorded == 1


METHODS = {
    "oft": lambda: OFTConfig(oft_block_size=8, target_modules=["q_proj", "down_proj"]),
    "loha": lambda: LoHaConfig(r=4, target_modules=["q_proj", "down_proj"]),
    "ia3": lambda: IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "shira": lambda: ShiraConfig(r=4, target_modules=["q_proj", "down_proj"]),
    "two experts' lora": lambda: lora(target_parameters=["mlp.experts.gate_up_proj"]),
}


@pytest.mark.parametrize("name", METHODS)
def test_other_methods(name):
    model = adapted(mixtral(initializer_range=0.3) if "experts" in name else lively(), METHODS[name]())
    expected, tape = generated(model), Tape()
    with decoding_graphs(model, tape):
        assert_alike(generated(model), expected)
        assert_alike(generated(model), expected)
    assert tape.recorded == 1


def test_rows_with_adapters_of_their_own():
    model = get_peft_model(lively(), lora())
    model.add_adapter("b", lora())
    for name in ("default", "b"):
        model.set_adapter(name)
        shake(model, 0.3)
    model.eval()
    named = {"adapter_names": ["b", "default"]}
    expected, tape = generated(model, IDS, **named), Tape()
    with decoding_graphs(model, tape):
        assert_alike(generated(model, IDS, **named), expected)
        named["adapter_names"].reverse()
        assert generated(model, IDS, **named)[0].tolist() != expected[0].tolist()
    assert tape.recorded == 2


def test_no_graphs_without_cuda_or_without_text():
    with (
        pytest.raises(DeviceError, match="CUDA graphs need a CUDA GPU, and this model runs on cpu"),
        decoding_graphs(llama()),
    ):
        pass
    with pytest.raises(ModelError, match="BertForSequenceClassification generates no text"), decoding_graphs(bert()):
        pass
