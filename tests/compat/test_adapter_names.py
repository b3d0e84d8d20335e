"""`adapter_names` in forward and generate, against the real PEFT's mixed batches."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import lorasmith
from lorasmith.models.activation_checkpointing import checkpoint_activations_
from tiny import bert, llama, quantized, shake, t5

peft = pytest.importorskip("peft")

IDS = torch.randint(1, 64, (5, 6), generator=torch.Generator().manual_seed(0))
NAMES = ["one", "__base__", "other", "one", "other"]
EXACT = {"atol": 5e-6, "rtol": 0}


def fields(build) -> list[dict]:
    task = "SEQ_2_SEQ_LM" if build is t5 else "CAUSAL_LM"
    targets = [["q", "v"], ["q", "k", "wi"]] if build is t5 else ["all-linear", ["q_proj", "embed_tokens"]]
    return [
        {"r": rank, "lora_alpha": 9, "target_modules": chosen, "task_type": task, "init_lora_weights": False}
        for rank, chosen in zip((4, 3), targets, strict=True)
    ]


def both(build, tmp_path) -> tuple[nn.Module, nn.Module]:
    """The same two adapters here and in PEFT."""
    one, other = fields(build)
    ours = lorasmith.get_peft_model(build(), lorasmith.LoraConfig(**one), adapter_name="one")
    ours.add_adapter("other", lorasmith.LoraConfig(**other))
    ours.save_pretrained(tmp_path, save_embedding_layers=False)
    theirs = peft.PeftModel.from_pretrained(build(), tmp_path / "one", adapter_name="one")
    theirs.load_adapter(tmp_path / "other", adapter_name="other")
    return ours.eval(), theirs.eval()


@pytest.mark.parametrize("build", [llama, t5])
def test_a_mixed_batch_is_pefts(build, tmp_path):
    ours, theirs = both(build, tmp_path)
    more = {"decoder_input_ids": IDS[:, :4]} if build is t5 else {}
    with torch.no_grad():
        mine, other = (model(input_ids=IDS, adapter_names=NAMES, **more).logits for model in (ours, theirs))
    assert_close(mine, other, **EXACT)
    assert (mine[1] - ours(input_ids=IDS, **more).logits[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    "how", [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}], ids=["greedy", "beams", "sequences"]
)
@pytest.mark.parametrize("build", [llama, t5])
def test_generated_tokens_are_pefts(build, how, tmp_path):
    ours, theirs = both(build, tmp_path)
    asked = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "max_new_tokens": 6, "do_sample": False, **how}
    tokens = [model.generate(**asked, adapter_names=NAMES, pad_token_id=0) for model in (ours, theirs)]
    assert torch.equal(*tokens)


def test_sampling_may_return_several_sequences_a_row(tmp_path):
    ours, _ = both(llama, tmp_path)
    asked = {"max_new_tokens": 3, "do_sample": True, "num_return_sequences": 2, "pad_token_id": 0}
    assert ours.generate(input_ids=IDS, adapter_names=NAMES, **asked).shape[0] == 10


def test_quantized_and_in_training_each_row_has_its_adapter():
    model = lorasmith.get_peft_model(quantized(llama()), lorasmith.LoraConfig(**fields(llama)[0]), adapter_name="one")
    model.add_adapter("other", lorasmith.LoraConfig(**fields(llama)[1]))
    model.set_adapter(["one", "other"])
    model.train()(input_ids=IDS, labels=IDS, adapter_names=NAMES).loss.backward()
    assert all(p.grad.any() for p in model.parameters() if p.requires_grad)


def test_a_classifiers_heads_are_those_of_the_rows():
    model = lorasmith.get_peft_model(bert(), lorasmith.LoraConfig(task_type="SEQ_CLS"), adapter_name="one")
    shake(model)
    model.add_adapter("other", lorasmith.LoraConfig(task_type="SEQ_CLS"))
    model.set_adapter("other")
    shake(model, 0.2)
    model.eval()
    with torch.no_grad():
        together = model(input_ids=IDS, adapter_names=NAMES).logits
        for row, name in enumerate(NAMES):
            assert_close(together[row], model(input_ids=IDS[[row]], adapter_names=[name]).logits[0], **EXACT)


def test_another_number_of_names_is_refused(tmp_path):
    ours, _ = both(llama, tmp_path)
    with pytest.raises(ValueError, match="2 names for 5 rows"):
        ours(input_ids=IDS, adapter_names=["one", "other"])


def test_checkpointed_layers_need_the_names_in_the_backward_too():
    one, other = fields(llama)
    model = lorasmith.get_peft_model(llama(), lorasmith.LoraConfig(**one), adapter_name="one")
    model.add_adapter("other", lorasmith.LoraConfig(**(other | {"target_modules": ["q_proj"]})))
    model.set_adapter(["one", "other"])
    model.train()

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        with model.adapters.by_rows(NAMES):
            model(input_ids=IDS, labels=IDS).loss.backward()
        return [p.grad for p in model.parameters() if p.requires_grad]

    expected = gradients()
    checkpoint_activations_(model.get_base_model())
    for mine, kept in zip(gradients(), expected, strict=True):
        assert_close(mine, kept, **EXACT)
    with pytest.raises(ValueError, match="by_rows"):
        model(input_ids=IDS, labels=IDS, adapter_names=NAMES)
