"""Adapters whose start is a part of the base: the real PEFT's and ours, read by one another with equal logits."""

import pytest
import torch
from torch.testing import assert_close

import lorasmith
from tiny import llama, logits, shake

peft = pytest.importorskip("peft")

# two orders of the same f32 sums, and one more rounding of the weight where PEFT takes the start off it
TOLERANCE = {"atol": 4e-6, "rtol": 0}
STARTS = ["pissa", "olora"]
CASES = {
    "defaults": {},
    "alpha": {"r": 4, "lora_alpha": 12},
    "root of the rank": {"use_rslora": True, "r": 4},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}, "r": 4},
    "DoRA": {"use_dora": True, "r": 4},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"], "r": 3},
}


@pytest.fixture(params=STARTS)
def start(request):
    return request.param


@pytest.fixture(params=CASES)
def fields(request, start):
    return {"task_type": "CAUSAL_LM", "init_lora_weights": start} | CASES[request.param]


# PEFT saves an adapted embedding whole, and says so
pytestmark = pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")


def test_what_peft_wrote_without_converting_is_read(fields, tmp_path):
    theirs = shake(peft.get_peft_model(llama(), peft.LoraConfig(**fields)).eval())
    theirs.save_pretrained(tmp_path)
    ours = lorasmith.PeftModel.from_pretrained(llama(), tmp_path)
    assert_close(logits(ours), logits(theirs), **TOLERANCE)
    with ours.disable_adapter():
        assert torch.equal(logits(ours), logits(llama()))


def test_what_is_written_here_is_read_by_peft(fields, tmp_path):
    ours = shake(lorasmith.get_peft_model(llama(), lorasmith.LoraConfig(**fields)).eval())
    ours.save_pretrained(tmp_path)
    theirs = peft.PeftModel.from_pretrained(llama(), tmp_path).eval()
    assert_close(logits(theirs), logits(ours), **TOLERANCE)


def test_the_same_parameters_train(fields):
    theirs = peft.get_peft_model(llama(), peft.LoraConfig(**fields))
    ours = lorasmith.get_peft_model(llama(), lorasmith.LoraConfig(**fields))
    assert ours.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()


def test_both_begin_at_the_same_product(fields):
    theirs = peft.get_peft_model(llama(), peft.LoraConfig(**fields))
    ours = lorasmith.get_peft_model(llama(), lorasmith.LoraConfig(**fields))
    parts = [
        {name.replace("lora_B.default", ""): p for name, p in model.named_parameters() if "lora_B" in name}
        for model in (theirs, ours)
    ]
    others = [dict(model.named_parameters()) for model in (theirs, ours)]
    for name in parts[0]:
        a, b = (
            part[name] @ other[name.replace("..", ".lora_A.default.")]
            for part, other in zip(parts, others, strict=True)
        )
        assert_close(a, b, atol=1e-5, rtol=0)


# what PEFT says of any second adapter, here of the one that it makes for converting
@pytest.mark.filterwarnings("ignore:(PiSSA|OLoRA) changes the base weights")
def test_what_peft_converted_is_the_same_as_what_is_written_here(start, tmp_path):
    fields = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 12}
    theirs = peft.get_peft_model(llama(), peft.LoraConfig(init_lora_weights=start, **fields)).eval()
    theirs.peft_config["default"].init_lora_weights = True
    theirs.save_pretrained(tmp_path / "start")
    theirs.peft_config["default"].init_lora_weights = start
    shake(theirs)
    theirs.save_pretrained(tmp_path / "theirs", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    read = lorasmith.PeftModel.from_pretrained(llama(), tmp_path / "theirs")
    assert_close(logits(read), logits(theirs), **TOLERANCE)
    ours = shake(lorasmith.get_peft_model(llama(), lorasmith.LoraConfig(init_lora_weights=start, **fields)))
    ours.save_pretrained(tmp_path / "ours")
    again = lorasmith.PeftModel.from_pretrained(llama(), tmp_path / "ours")
    for name in ("r", "lora_alpha", "init_lora_weights", "rank_pattern", "alpha_pattern"):
        assert getattr(read.peft_config["default"], name) == getattr(again.peft_config["default"], name), name


def test_a_trainer_that_resumes_loads_into_the_adapter_that_it_made(start, tmp_path):
    fields = {"task_type": "CAUSAL_LM", "r": 4, "init_lora_weights": start}
    before = shake(lorasmith.get_peft_model(llama(), lorasmith.LoraConfig(**fields)))
    before.save_pretrained(tmp_path)
    # as transformers' Trainer does on resume_from_checkpoint
    after = lorasmith.get_peft_model(llama(), lorasmith.LoraConfig(**fields))
    after.load_adapter(tmp_path, "default", is_trainable=True)
    assert torch.equal(logits(after), logits(before))
    assert after.get_nb_trainable_parameters() == before.get_nb_trainable_parameters()
    assert after.peft_config["default"].init_lora_weights == start


def test_such_adapters_are_combined_like_others(start):
    fields = {"task_type": "CAUSAL_LM", "r": 4, "init_lora_weights": start}
    model = shake(lorasmith.get_peft_model(llama(), lorasmith.LoraConfig(**fields)))
    model.add_adapter("other", lorasmith.LoraConfig(task_type="CAUSAL_LM", r=2))
    model.set_adapter("other")
    shake(model)
    model.set_adapter(["default", "other"])
    both = logits(model)
    model.add_weighted_adapter(["default", "other"], [1.0, 1.0], "sum", combination_type="cat")
    model.set_adapter("sum")
    assert_close(logits(model), both, atol=1e-5, rtol=0)


def test_a_start_that_peft_drew_by_chance_is_doubted(tmp_path, caplog):
    theirs = peft.get_peft_model(llama(), peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights="pissa_niter_8"))
    shake(theirs).save_pretrained(tmp_path)
    ours = lorasmith.PeftModel.from_pretrained(llama(), tmp_path)
    assert "path_initial_model_for_weight_conversion" in caplog.text
    # near, since the decomposition is nearly exact
    assert_close(logits(ours), logits(theirs.eval()), atol=0.1, rtol=0)


def test_an_orthogonal_adapter_is_read_both_ways(tmp_path):
    fields = {"task_type": "CAUSAL_LM", "init_lora_weights": "orthogonal"}
    theirs = shake(peft.get_peft_model(llama(), peft.LoraConfig(**fields)).eval())
    theirs.save_pretrained(tmp_path / "theirs")
    ours = lorasmith.PeftModel.from_pretrained(llama(), tmp_path / "theirs")
    assert_close(logits(ours), logits(theirs), **TOLERANCE)
    ours.save_pretrained(tmp_path / "ours")
    assert_close(logits(peft.PeftModel.from_pretrained(llama(), tmp_path / "ours").eval()), logits(ours), **TOLERANCE)
