"""A memory plan runs a step on tensors without values: methods must not look at values as they compute."""

import pytest

from lorasmith import AdaLoraConfig, BOFTConfig, LoHaConfig, LoKrConfig, OFTConfig, ShiraConfig, VeraConfig
from lorasmith.attach import attach
from lorasmith.planning import PlanSettings, plan
from tiny import llama, quantized

DROPPED = {"rank_dropout": 0.2, "module_dropout": 0.2}
CONFIGS = {
    "loha": LoHaConfig(r=2, target_modules="all-linear", **DROPPED),
    "dense loha": LoHaConfig(r=8, target_modules="all-linear"),
    "lokr": LoKrConfig(r=2, target_modules="all-linear", **DROPPED),
    "vera": VeraConfig(r=6, target_modules="all-linear", vera_dropout=0.1),
    "adalora": AdaLoraConfig(target_modules="all-linear", lora_dropout=0.1, rank_pattern={"q_proj.lora_E": [True]}),
    "shira": ShiraConfig(r=2, target_modules="all-linear"),
    "shira by gradients": ShiraConfig(r=2, mask_type="gradient", target_modules="all-linear"),
    "oft": OFTConfig(oft_block_size=8, target_modules="all-linear", module_dropout=0.5, coft=True),
    "boft": BOFTConfig(boft_n_butterfly_factor=2, target_modules="all-linear", boft_dropout=0.5),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("base", [llama, lambda: quantized(llama())], ids=["dense", "nf4"])
def test_a_step_is_planned_on_weights_and_on_shapes_alone(config, base):
    settings = PlanSettings(batch_size=2, length=24, baseline=0)
    model = base()
    attach(model, config)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    planned = plan(model, settings).components
    assert planned["trainable parameters"] == planned["gradients"] == 4 * trainable
    assert plan(model.to("meta"), settings).components == planned
