"""Adapters written by the real PEFT are read here with equal logits, and ours there."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel

import lorasmith
from tiny import IDS, bert, llama, logits, shake

peft = pytest.importorskip("peft")

# what the real PEFT says on saving an adapted embedding, and a LoRA with biases, which it takes for half a matrix
pytestmark = [
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
    pytest.mark.filterwarnings(r"ignore:Adapter 'default'. \d+ LoRA tensor.s. have invalid shape"),
]

# two orders of the same f32 sums
TOLERANCE = {"atol": 2e-6, "rtol": 0}


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)).eval()


class Conv(nn.Module):
    """Convolutions of each dimension in a row; input_ids stand for pixels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(64, 16)
        self.conv1 = nn.Conv1d(16, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(1, 4, 3, padding=1, stride=2)
        self.conv3 = nn.Conv3d(4, 2, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, input_ids):
        x = self.conv1(self.embed(input_ids).transpose(1, 2))
        return self.conv3(self.conv2(x[:, None])[:, :, None])


CASES = {
    "defaults": (llama, "LoraConfig", {}),
    "alpha": (llama, "LoraConfig", {"r": 4, "lora_alpha": 9, "target_modules": ["q_proj", "v_proj"]}),
    "all linear": (llama, "LoraConfig", {"target_modules": "all-linear", "use_rslora": True}),
    "patterns": (
        llama,
        "LoraConfig",
        {
            "target_modules": "all-linear",
            "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\..*": 5},
            "alpha_pattern": {"v_proj": 3},
        },
    ),
    "expression": (llama, "LoraConfig", {"target_modules": r".*layers\.0.*(q|o)_proj"}),
    "layers": (llama, "LoraConfig", {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "excluded": (llama, "LoraConfig", {"target_modules": "all-linear", "exclude_modules": ["down_proj"]}),
    "embedding": (llama, "LoraConfig", {"target_modules": ["q_proj", "embed_tokens"], "r": 3}),
    "bias all": (llama, "LoraConfig", {"bias": "all", "target_modules": ["q_proj"]}),
    "bias lora_only": (llama, "LoraConfig", {"bias": "lora_only", "target_modules": ["q_proj", "k_proj"]}),
    "lora bias": (llama, "LoraConfig", {"lora_bias": True, "target_modules": ["q_proj", "o_proj"]}),
    "head whole": (llama, "LoraConfig", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "gaussian": (llama, "LoraConfig", {"init_lora_weights": "gaussian"}),
    "Conv1D": (gpt2, "LoraConfig", {"fan_in_fan_out": True}),
    "classifier": (bert, "LoraConfig", {"task_type": "SEQ_CLS", "target_modules": "all-linear"}),
    "convolutions": (
        Conv,
        "LoraConfig",
        {"task_type": None, "target_modules": ["conv1", "conv2", "conv3"], "r": 2, "lora_alpha": 5},
    ),
    "ia3": (llama, "IA3Config", {}),
    "ia3 classifier": (bert, "IA3Config", {"task_type": "SEQ_CLS"}),
    "ia3 convolutions": (
        Conv,
        "IA3Config",
        {"task_type": None, "target_modules": ["conv2", "conv3"], "feedforward_modules": ["conv2"]},
    ),
    "prompt tuning": (llama, "PromptTuningConfig", {"num_virtual_tokens": 4}),
    "prompt tuning classifier": (bert, "PromptTuningConfig", {"task_type": "SEQ_CLS", "num_virtual_tokens": 4}),
}


@pytest.fixture(params=CASES)
def case(request):
    build, name, fields = CASES[request.param]
    return build, name, {"task_type": "CAUSAL_LM"} | fields


def scores(model: nn.Module, virtual: int = 0) -> torch.Tensor:
    if any(isinstance(module, Conv) for module in model.modules()):
        return model(IDS).detach()
    mask = torch.ones_like(IDS)
    mask[1, 5:] = 0
    with torch.no_grad():
        out = model(input_ids=IDS, attention_mask=mask).logits
    # PEFT returns the virtual tokens' logits of a language model too
    return out[:, virtual:] if out.dim() == 3 else out


def virtual_tokens(fields: dict) -> int:
    return fields.get("num_virtual_tokens", 0)


def test_what_peft_wrote_is_read_with_equal_logits(case, tmp_path):
    build, name, fields = case
    theirs = shake(peft.get_peft_model(build(), getattr(peft, name)(**fields)).eval())
    theirs.save_pretrained(tmp_path)
    ours = lorasmith.PeftModel.from_pretrained(build(), tmp_path)
    assert_close(scores(ours), scores(theirs, virtual_tokens(fields)), **TOLERANCE)
    assert ours.peft_config["default"].peft_type == theirs.peft_config["default"].peft_type.value


def test_what_is_written_here_is_read_by_peft_with_equal_logits(case, tmp_path):
    build, name, fields = case
    ours = shake(lorasmith.get_peft_model(build(), getattr(lorasmith, name)(**fields)).eval())
    ours.save_pretrained(tmp_path)
    theirs = peft.PeftModel.from_pretrained(build(), tmp_path).eval()
    assert_close(scores(theirs, virtual_tokens(fields)), scores(ours), **TOLERANCE)


def test_the_same_parameters_train_as_in_peft(case):
    build, name, fields = case
    theirs = peft.get_peft_model(build(), getattr(peft, name)(**fields))
    ours = lorasmith.get_peft_model(build(), getattr(lorasmith, name)(**fields))
    assert ours.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()


def test_parameters_of_lora_are_named_inside_as_in_peft():
    fields = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    theirs = peft.get_peft_model(llama(), peft.LoraConfig(**fields))
    ours = lorasmith.get_peft_model(llama(), lorasmith.LoraConfig(**fields))
    assert {name for name, _ in ours.named_parameters()} == {name for name, _ in theirs.named_parameters()}


def test_merged_models_are_equal(case, tmp_path):
    build, name, fields = case
    if name == "PromptTuningConfig":
        pytest.skip("a soft prompt has no weights to merge into, here and in PEFT")
    theirs = shake(peft.get_peft_model(build(), getattr(peft, name)(**fields)).eval())
    theirs.save_pretrained(tmp_path)
    ours = lorasmith.PeftModel.from_pretrained(build(), tmp_path)
    assert_close(scores(ours.merge_and_unload()), scores(theirs.merge_and_unload()), **TOLERANCE)


def test_configs_have_pefts_fields_and_defaults():
    theirs = peft.LoraConfig().to_dict()
    ours = lorasmith.LoraConfig().to_dict()
    # not saved, or a note of PEFT's own
    for name in ("runtime_config", "peft_version"):
        theirs.pop(name, None)
    assert {name: ours.get(name, "missing") for name in theirs} == theirs


def test_logits_differ_from_the_bases_so_that_equality_means_something(case):
    build, name, fields = case
    ours = shake(lorasmith.get_peft_model(build(), getattr(lorasmith, name)(**fields)).eval())
    adapted = scores(ours)
    with ours.disable_adapter():
        assert (scores(ours) - adapted).abs().max() > 1e-3


def test_logits_of_a_loaded_adapter_equal_those_before_saving(tmp_path):
    ours = shake(lorasmith.get_peft_model(llama(), lorasmith.LoraConfig(task_type="CAUSAL_LM")).eval())
    ours.save_pretrained(tmp_path)
    assert torch.equal(logits(lorasmith.PeftModel.from_pretrained(llama(), tmp_path)), logits(ours))
