"""State dicts of loralib against its arithmetic, worked out here from the formulas of its layers."""

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel, RobertaConfig, RobertaForSequenceClassification

import lorasmith
from lorasmith.attach import attach_content, write_adapter
from lorasmith.attach.foreign import Loralib, from_loralib
from lorasmith.errors import AdapterError
from lorasmith.methods import TaskType
from tiny import IDS, bert, logits


@pytest.fixture(scope="module")
def published(shared):
    """The adapter for RoBERTa-base on MNLI that the authors of LoRA published: r 8, alpha 16."""
    file = shared / "lora_roberta_mnli" / "roberta_base_lora_mnli.safetensors"
    if not file.is_file():
        pytest.skip(f"the published adapter is absent: {file}")
    return load_file(file)


def roberta() -> RobertaForSequenceClassification:
    """RoBERTa-base's twelve layers of 768 with a small vocabulary and narrow feed-forwards, at random."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "intermediate_size": 64, "num_hidden_layers": 12, "num_labels": 3}
    return RobertaForSequenceClassification(RobertaConfig(**sizes, pad_token_id=1, type_vocab_size=1)).eval()


def test_the_published_adapter_does_what_loralib_does_with_it(published, tmp_path):
    by_hand = roberta()
    state = by_hand.state_dict()
    for key, value in published.items():
        if key.endswith("lora_A"):
            module = key.removesuffix(".lora_A")
            # Linear: x W^T + x A^T B^T alpha / r
            state[f"{module}.weight"] += published[f"{module}.lora_B"] @ value * (16 / 8)
        elif not key.endswith("lora_B"):
            state[key] = value
    by_hand.load_state_dict(state)
    content = from_loralib(published, Loralib(16, "roberta-base", TaskType.SEQ_CLS))
    write_adapter(content, tmp_path)
    ours = lorasmith.PeftModel.from_pretrained(roberta(), tmp_path)
    ids = IDS.clamp(min=2)
    # sums of 768 products in another order, through twelve layers
    assert_close(logits(ours, ids), logits(by_hand, ids), atol=1e-4, rtol=1e-4)
    config = ours.peft_config["default"]
    assert (config.r, config.lora_alpha, config.modules_to_save) == (8, 16, ["classifier"])
    assert len(ours.adapters.sites("default")) == 24
    with ours.disable_adapter():
        assert (logits(ours, ids) - logits(by_hand, ids)).abs().max() > 0.1


def test_peft_reads_what_was_converted(published, tmp_path):
    peft = pytest.importorskip("peft")
    write_adapter(from_loralib(published, Loralib(16, None, TaskType.SEQ_CLS)), tmp_path)
    ids = IDS.clamp(min=2)
    theirs = peft.PeftModel.from_pretrained(roberta(), tmp_path).eval()
    ours = lorasmith.PeftModel.from_pretrained(roberta(), tmp_path)
    assert_close(logits(theirs, ids), logits(ours, ids), atol=1e-4, rtol=1e-4)


def test_a_merged_layer_adapts_the_projections_that_its_flags_say():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)).eval()
    tensors = {}
    by_hand = {key: value.clone() for key, value in model.state_dict().items()}
    for layer in range(2):
        path = f"transformer.h.{layer}.attn.c_attn"
        a, b = torch.randn(2 * 3, 32), torch.randn(2 * 32, 3)
        tensors |= {f"{path}.lora_A": a, f"{path}.lora_B": b}
        # query and value, each with its own three rows of A; GPT-2 stores [in, out]
        for number, place in enumerate((0, 2)):
            change = b[32 * number : 32 * (number + 1)] @ a[3 * number : 3 * (number + 1)] * (5 / 3)
            by_hand[f"{path}.weight"][:, 32 * place : 32 * (place + 1)] += change.T
    expected = GPT2LMHeadModel(model.config).eval()
    expected.load_state_dict(by_hand)
    flags = {"c_attn": (True, False, True)}
    attach_content(model, from_loralib(tensors, Loralib(5, task=TaskType.CAUSAL_LM, merged=flags)))
    assert_close(logits(model), logits(expected), atol=2e-5, rtol=0)


def test_ranks_may_differ_from_module_to_module():
    torch.manual_seed(0)
    paths = [f"bert.encoder.layer.{layer}.attention.self.query" for layer in range(2)]
    tensors = {}
    for path, rank in zip(paths, (2, 5)):
        tensors |= {f"{path}.lora_A": torch.randn(rank, 32), f"{path}.lora_B": torch.randn(32, rank)}
    model = bert()
    book = attach_content(model, from_loralib(tensors, Loralib(6)))
    assert {path: site.scaling for path, site in book.sites("default")} == {paths[0]: 3.0, paths[1]: 1.2}


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"a.weight": torch.zeros(2)}, "no tensor is named lora_A"),
        ({"a.lora_A": torch.zeros(2, 3)}, "only one of lora_A and lora_B"),
        ({"a.lora_A": torch.zeros(4, 3), "a.lora_B": torch.zeros(6, 2)}, r"\(4, 3\) and \(6, 2\); if it is a Merged"),
        ({"a.lora_A": torch.zeros(2, 3), "a.lora_B": torch.zeros(3, 2), "a.bias": torch.zeros(3)}, r"a\.bias"),
    ],
)
def test_what_is_no_plain_adapter_is_refused(tensors, said):
    with pytest.raises(AdapterError, match=said):
        from_loralib(tensors, Loralib(8))


def test_flags_that_do_not_fit_are_refused():
    tensors = {"x.c_attn.lora_A": torch.zeros(6, 4), "x.c_attn.lora_B": torch.zeros(8, 3)}
    with pytest.raises(AdapterError, match="3 adapted projections out of 3"):
        from_loralib(tensors, Loralib(8, merged={"c_attn": (True, True, True)}))
