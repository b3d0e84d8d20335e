"""Adapters of different methods on one model: each its own row of a batch, two at once, and merged together."""

import copy

import pytest
import torch
from torch.testing import assert_close

from lorasmith import AdaLoraConfig, BOFTConfig, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, VeraConfig
from lorasmith.attach import attach, merge_and_unload
from tiny import llama, logits, quantized, shake

CONFIGS = {
    "lora": LoraConfig(target_modules=["q_proj", "o_proj"], r=3),
    "loha": LoHaConfig(target_modules=["q_proj", "v_proj"], r=2),
    "lokr": LoKrConfig(target_modules=["q_proj"], r=2),
    "vera": VeraConfig(target_modules=["q_proj", "down_proj"], r=4),
    "adalora": AdaLoraConfig(target_modules=["q_proj"], init_r=2),
    "oft": OFTConfig(target_modules=["q_proj"], oft_block_size=8),
    "boft": BOFTConfig(target_modules=["v_proj"], boft_n_butterfly_factor=2),
}
IDS = torch.randint(64, (len(CONFIGS), 5), generator=torch.Generator().manual_seed(3))


@pytest.fixture(params=[llama, lambda: quantized(llama())], ids=["dense", "nf4"])
def model(request):
    model = request.param()
    for name, config in CONFIGS.items():
        attach(model, config, name)
        shake(model)
    return model


def test_every_row_of_a_batch_is_served_by_another_method(model):
    book = model.adapters_book
    alone = []
    for row, name in enumerate(CONFIGS):
        book.activate(name)
        alone.append(logits(model, IDS[row : row + 1]))
    with book.by_rows(list(CONFIGS)):
        assert_close(logits(model, IDS), torch.cat(alone), atol=2e-6, rtol=0)


# a rotation turns the base's input alone, wherever it stands in the list
@pytest.mark.parametrize("names", [["lora", "loha"], ["vera", "lokr", "adalora"], ["lora", "oft"], ["oft", "vera"]])
def test_methods_that_act_together_merge_together(model, names):
    model.adapters_book.activate(names)
    together = logits(model, IDS)
    # one rounding of the weight in f32
    assert_close(logits(merge_and_unload(copy.deepcopy(model), names), IDS), together, atol=1e-5, rtol=0)
