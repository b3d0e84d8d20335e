import pytest
import torch
from torch.testing import assert_close
from transformers import MistralConfig, MistralForCausalLM

from lorasmith.attach import adapters_of, attach
from lorasmith.errors import AttachError
from lorasmith.methods import prompt_tuning
from lorasmith.methods.prompt_tuning import PromptTuningConfig
from lorasmith.models.packed_attention import segment_mask
from tiny import IDS, bert, llama, logits, shake, t5


def prompted():
    model = llama()
    attach(model, PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"))
    return shake(model)


def greedy(model, ids, steps):
    for _ in range(steps):
        ids = torch.cat([ids, logits(model, ids)[:, -1:].argmax(-1)], 1)
    return ids


def test_virtual_tokens_are_cut_off_the_output():
    assert logits(prompted()).shape == (*IDS.shape, 64)


@pytest.mark.parametrize("base", [llama, bert])
def test_virtual_tokens_are_cut_off_hidden_states_and_attentions(base):
    model = base()
    model.set_attn_implementation("eager")
    attach(model, PromptTuningConfig(num_virtual_tokens=4))
    with torch.no_grad():
        found = shake(model)(input_ids=IDS, output_hidden_states=True, output_attentions=True)
        last = model.base_model(input_ids=IDS).last_hidden_state
    assert {state.shape for state in found.hidden_states} == {(*IDS.shape, 32)}
    assert torch.equal(found.hidden_states[-1], last)
    assert {weights.shape for weights in found.attentions} == {(2, 4, 7, 7)}
    # the virtual tokens have the rest
    assert all((weights.sum(-1) < 1).all() for weights in found.attentions)


def test_virtual_tokens_are_cut_off_what_generation_returns():
    model = prompted()
    model.set_attn_implementation("eager")
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    asked = {"output_hidden_states": True, "output_attentions": True, "return_dict_in_generate": True}
    made = model.generate(input_ids=IDS, **options, **asked)
    assert [layers[0].shape[1] for layers in made.hidden_states] == [7, 1, 1]
    assert [layers[0].shape[2:] for layers in made.attentions] == [(7, 7), (1, 8), (1, 9)]


def test_a_sliding_window_has_no_more_keys_than_it_keeps():
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    model = MistralForCausalLM(MistralConfig(**sizes, **heads, sliding_window=10, attn_implementation="eager")).eval()
    attach(model, PromptTuningConfig(num_virtual_tokens=4))
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    made = model.generate(input_ids=IDS, **options, output_attentions=True, return_dict_in_generate=True)
    # 4 + 7 positions, of which a window of 10 keeps 2 virtual ones at the first new token, then one, then none
    assert [layers[0].shape[-1] for layers in made.attentions] == [7, 8, 9, 10]


def test_cached_generation_equals_recomputation():
    model = prompted()
    made = model.generate(input_ids=IDS, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert torch.equal(made, greedy(model, IDS, 6))


def test_left_padding_does_not_change_what_is_generated():
    model = prompted()
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), IDS[:1]], 1)
    mask = torch.ones_like(padded)
    mask[:, :3] = 0
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    made = model.generate(input_ids=padded, attention_mask=mask, **options)
    assert torch.equal(made[:, 3:], greedy(model, IDS[:1], 6))


def test_a_vocabulary_start_takes_rows_of_the_embedding():
    model = llama()
    config = PromptTuningConfig(num_virtual_tokens=5, prompt_tuning_init="SAMPLE_VOCAB")
    book = attach(model, config)
    rows = model.get_input_embeddings().weight
    start = book.prompted.prompt.embeddings()
    assert all((row == rows).all(1).any() for row in start)


def test_a_text_start_needs_its_text():
    with pytest.raises(AttachError, match="prompt_tuning_init_text"):
        PromptTuningConfig(num_virtual_tokens=5, prompt_tuning_init="TEXT")


def test_a_prompt_acts_alone():
    model = prompted()
    attach(model, PromptTuningConfig(num_virtual_tokens=2), "other")
    with pytest.raises(AttachError, match="acts alone"):
        adapters_of(model).activate(["default", "other"])


def test_an_encoder_decoder_generates_with_a_cache_as_without():
    model = t5()
    attach(model, PromptTuningConfig(num_virtual_tokens=4, task_type="SEQ_2_SEQ_LM"))
    shake(model, 2.0)
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


def test_it_says_that_it_does_not_pack():
    packed = {"input_ids": IDS.reshape(1, -1), "attention_mask": segment_mask(torch.tensor([0, 7, 14]))}
    with pytest.raises(AttachError, match="packing: false"):
        prompted()(**packed)


def test_a_text_start_hands_on_what_the_tokenizer_needs_and_nothing_that_runs_code(monkeypatch):
    asked = {}

    class Tokenizers:
        @staticmethod
        def from_pretrained(name, **options):
            asked.update(options, name=name)
            return lambda text: {"input_ids": [5, 6, 7]}

    monkeypatch.setattr(prompt_tuning, "AutoTokenizer", Tokenizers)
    start = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "hi", "tokenizer_name_or_path": "there"}
    options = {"subfolder": "words", "trust_remote_code": True}
    model = llama()
    book = attach(model, PromptTuningConfig(num_virtual_tokens=5, tokenizer_kwargs=options, **start))
    assert asked == {"name": "there", "subfolder": "words"}
    rows = model.get_input_embeddings().weight[[5, 6, 7, 5, 6]]
    assert torch.equal(book.prompted.prompt.embeddings(), rows)


def test_options_of_a_tokenizer_need_a_text():
    with pytest.raises(AttachError, match="only prompt_tuning_init='TEXT'"):
        PromptTuningConfig(num_virtual_tokens=5, tokenizer_kwargs={"subfolder": "words"})


def test_a_prompt_of_another_width_leaves_the_model_as_it_was():
    model = llama()
    with pytest.raises(AttachError, match="token_dim=16 is not the width 32"):
        attach(model, PromptTuningConfig(num_virtual_tokens=5, token_dim=16))
    assert "prompt_encoder" not in dict(model.named_children())
