"""The tables of default targets are PEFT's own, and every family with block ends has them in a real model."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from lorasmith.models.families import BLOCK_ENDS, IA3_FEEDFORWARD, IA3_TARGETS, LORA_TARGETS


@pytest.mark.parametrize(
    ("ours", "name"),
    [
        (LORA_TARGETS, "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING"),
        (IA3_TARGETS, "TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING"),
        (IA3_FEEDFORWARD, "TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING"),
    ],
)
def test_default_targets_are_those_of_peft(ours, name):
    constants = pytest.importorskip("peft.utils.constants")
    theirs = getattr(constants, name)
    # a later PEFT may know more families than the one that the table was read from
    assert {family: theirs.get(family) for family in ours} == ours


def test_ia3_feedforward_modules_are_among_its_targets():
    for family, names in IA3_FEEDFORWARD.items():
        assert set(names) <= set(IA3_TARGETS[family])


@pytest.mark.parametrize("family", [family for family in BLOCK_ENDS if family != "mixtral"])
def test_block_ends_exist_in_the_family_and_return_to_the_width_of_the_model(family):
    config = AutoConfig.for_model(family)
    # one layer on the meta device costs nothing
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    width = config.hidden_size
    for end in BLOCK_ENDS[family]:
        found = [module for name, module in model.named_modules() if name.endswith(f".{end}")]
        assert found, f"{family} has no {end}"
        assert all(width in module.weight.shape for module in found)
