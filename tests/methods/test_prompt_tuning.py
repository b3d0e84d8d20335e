import pytest
import torch

from lorasmith.attach import adapters_of, attach
from lorasmith.errors import AttachError
from lorasmith.methods.prompt_tuning import PromptTuningConfig
from tiny import IDS, llama, logits, shake


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
