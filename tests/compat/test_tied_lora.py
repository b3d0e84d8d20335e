"""LoRA on an embedding whose weight the head shares: ensure_weight_tying, beside the real PEFT."""

import pytest
from torch.testing import assert_close

import lorasmith
from lorasmith.attach import adapters_of, attach
from lorasmith.errors import AttachError
from lorasmith.methods.lora import LoraConfig
from tiny import llama, logits, shake

peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")

# two orders of the same f32 sums
TOLERANCE = {"atol": 1e-5, "rtol": 0}


def tied():
    return llama(tie_word_embeddings=True)


@pytest.fixture(params=["embed_tokens", "lm_head"])
def fields(request):
    targets = ["q_proj", request.param]
    return {"target_modules": targets, "ensure_weight_tying": True, "task_type": "CAUSAL_LM", "r": 3}


def test_what_peft_wrote_is_read_with_equal_logits(fields, tmp_path):
    theirs = shake(peft.get_peft_model(tied(), peft.LoraConfig(**fields)).eval())
    theirs.save_pretrained(tmp_path)
    # in memory their two copies of a factor share storage, so that shaking moves it twice: what counts is the file
    theirs = peft.PeftModel.from_pretrained(tied(), tmp_path).eval()
    ours = lorasmith.PeftModel.from_pretrained(tied(), tmp_path)
    assert_close(logits(ours.get_base_model()), logits(theirs.get_base_model()), **TOLERANCE)


def test_what_is_written_here_is_read_by_peft_with_equal_logits(fields, tmp_path):
    ours = shake(lorasmith.get_peft_model(tied(), LoraConfig(**fields)).eval())
    ours.save_pretrained(tmp_path)
    theirs = peft.PeftModel.from_pretrained(tied(), tmp_path).eval()
    assert_close(logits(theirs.get_base_model()), logits(ours.get_base_model()), **TOLERANCE)


def test_the_factors_are_trained_once_and_the_merge_keeps_one_weight(fields):
    model = tied()
    book = attach(model, LoraConfig(**fields))
    assert sum(p.numel() for p in book.parameters("default")) == 2 * 3 * (32 + 32) + 3 * (64 + 32)
    before = logits(shake(model))
    # PEFT adds the update to the shared weight twice
    merged = lorasmith.merge_and_unload(model)
    assert_close(logits(merged), before, **TOLERANCE)
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert merged.config.tie_word_embeddings


def test_modules_that_train_whole_stay_tied():
    model = tied()
    book = attach(model, LoraConfig(modules_to_save=["lm_head"], ensure_weight_tying=True))
    copies = [saved.modules_to_save["default"].weight for _, saved in book.saved_modules()]
    assert len(copies) == 2
    assert copies[0] is copies[1]
    before = logits(shake(model))
    merged = lorasmith.merge_and_unload(model)
    assert_close(logits(merged), before, **TOLERANCE)
    assert merged.config.tie_word_embeddings


def test_an_adapted_and_a_whole_layer_cannot_share_a_weight():
    with pytest.raises(AttachError, match=r"model\.embed_tokens is a SavedModule"):
        attach(
            tied(), LoraConfig(target_modules=["lm_head"], modules_to_save=["embed_tokens"], ensure_weight_tying=True)
        )


def test_without_a_tied_target_nothing_is_tied_and_the_log_says_so(caplog):
    model = llama()
    attach(model, LoraConfig(target_modules=["embed_tokens"], ensure_weight_tying=True))
    assert "ensure_weight_tying" in caplog.text
    assert len(adapters_of(model).sites("default")) == 1
