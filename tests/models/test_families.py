"""The tables of default targets are PEFT's own, and every family with block ends has them in a real model."""

import pytest
import torch
from transformers import AutoConfig, AutoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from lorasmith.methods import SiteMethod, methods
from lorasmith.models.families import BLOCK_ENDS, IA3_FEEDFORWARD, IA3_TARGETS

SITE_METHODS = [name for name, method in methods.items() if isinstance(method, SiteMethod)]


@pytest.mark.parametrize("name", SITE_METHODS)
def test_default_targets_are_those_of_peft_for_every_family(name):
    constants = pytest.importorskip("peft.utils.constants")
    theirs = getattr(constants, f"TRANSFORMERS_MODELS_TO_{name.replace('_', '').upper()}_TARGET_MODULES_MAPPING", None)
    if theirs is None:
        pytest.skip(f"PEFT has no table of targets for {name}")
    families = {*theirs, *CONFIG_MAPPING_NAMES}
    ours = {family: methods[name].default_targets(family) for family in families}
    assert ours == {family: theirs.get(family) for family in families}


def test_ia3_feedforward_modules_are_those_of_peft():
    constants = pytest.importorskip("peft.utils.constants")
    assert IA3_FEEDFORWARD == constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING


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
