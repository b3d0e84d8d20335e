"""Swapping adapters in place: the new one's effect, the old one's tensors, and nothing compiled twice."""

import pytest
import torch
from torch.testing import assert_close

import lorasmith
from lorasmith import LoraConfig, PeftModel
from lorasmith.attach import attach, save_adapter
from lorasmith.errors import AttachError
from tiny import IDS, bert, llama, logits

TARGETS = ["q_proj", "v_proj", "down_proj"]


def saved(folder, seed: int, build=llama, **fields: object):
    """A folder with a random adapter."""
    model = build()
    book = attach(model, LoraConfig(**({"task_type": "CAUSAL_LM", "target_modules": TARGETS} | fields)))
    torch.manual_seed(seed)
    for parameter in book.parameters("default"):
        torch.nn.init.normal_(parameter, std=0.2)
    save_adapter(model, folder / str(seed))
    return folder / str(seed)


def alone(folder, build=llama) -> torch.Tensor:
    return logits(PeftModel.from_pretrained(build(), folder))


@pytest.mark.parametrize("fields", [{}, {"target_modules": ["q_proj", "embed_tokens"]}, {"use_dora": True}])
def test_the_same_rank_is_copied_bit_for_bit_into_the_same_memory(tmp_path, fields):
    one, two = saved(tmp_path, 1, **fields), saved(tmp_path, 2, **fields)
    model = PeftModel.from_pretrained(llama(), one)
    places = {name: p.data_ptr() for name, p in model.named_parameters()}
    lorasmith.hotswap_adapter(model, two, "default")
    assert torch.equal(logits(model), alone(two))
    lorasmith.hotswap_adapter(model, one, "default")
    assert torch.equal(logits(model), alone(one))
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == places


def test_other_ranks_and_scalings_fit_after_making_room(tmp_path):
    folders = [
        saved(tmp_path, 1, r=4, lora_alpha=5),
        saved(tmp_path, 2, r=8, use_rslora=True),
        saved(tmp_path, 3, r=2, rank_pattern={"v_proj": 3}, alpha_pattern={"q_proj": 7}, lora_bias=False),
    ]
    model = PeftModel.from_pretrained(llama(), folders[0])
    lorasmith.prepare_model_for_compiled_hotswap(model, target_rank=8)
    # a product by the scaling moved from one factor to the other
    assert_close(logits(model), alone(folders[0]), atol=2e-6, rtol=0)
    for folder in [*folders, *folders]:
        lorasmith.hotswap_adapter(model, folder, "default")
        assert_close(logits(model), alone(folder), atol=2e-6, rtol=0)
    # what is there can be saved, which PEFT's padded adapter cannot
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(alone(tmp_path / "again"), logits(model))
    peft = pytest.importorskip("peft")
    theirs = peft.PeftModel.from_pretrained(llama(), tmp_path / "again").eval()
    assert_close(logits(theirs), logits(model), atol=2e-6, rtol=0)


def test_doras_lengths_are_swapped_with_their_update(tmp_path):
    one, two = saved(tmp_path, 1, r=4, use_dora=True), saved(tmp_path, 2, r=6, lora_alpha=3, use_dora=True)
    model = PeftModel.from_pretrained(llama(), one)
    lorasmith.prepare_model_for_compiled_hotswap(model, target_rank=6)
    for folder in (two, one):
        lorasmith.hotswap_adapter(model, folder, "default")
        assert_close(logits(model), alone(folder), atol=2e-6, rtol=0)
    with pytest.raises(AttachError, match="use_dora=False"):
        lorasmith.hotswap_adapter(model, saved(tmp_path, 3, r=4), "default")


def test_a_lower_rank_and_fewer_modules_need_no_room(tmp_path):
    one, two = saved(tmp_path, 1, r=6), saved(tmp_path, 2, r=3, target_modules=["v_proj"])
    model = PeftModel.from_pretrained(llama(), one)
    lorasmith.hotswap_adapter(model, two, "default")
    assert_close(logits(model), alone(two), atol=2e-6, rtol=0)


def test_swapping_compiles_nothing_again(tmp_path):
    folders = [saved(tmp_path, 1, r=4), saved(tmp_path, 2, r=8, lora_alpha=3), saved(tmp_path, 3, r=2)]
    model = PeftModel.from_pretrained(llama(), folders[0])
    lorasmith.prepare_model_for_compiled_hotswap(model, target_rank=8)
    compiled = torch.compile(model, backend="eager")
    torch._dynamo.reset()
    with torch.no_grad():
        compiled(input_ids=IDS, use_cache=False)
    counted = dict(torch._dynamo.utils.counters["stats"])
    assert counted["unique_graphs"] > 0
    with torch._dynamo.config.patch(error_on_recompile=True), torch.no_grad():
        for folder in folders:
            lorasmith.hotswap_adapter(compiled, folder, "default")
            made = compiled(input_ids=IDS, use_cache=False).logits
            assert_close(made, alone(folder), atol=2e-6, rtol=0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == counted["unique_graphs"]


def test_a_scaling_that_changed_otherwise_would_be_compiled_again(tmp_path):
    # or the test above could not fail
    model = PeftModel.from_pretrained(llama(), saved(tmp_path, 1))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(input_ids=IDS, use_cache=False)
        for _, site in model.adapters.sites("default"):
            site.scaling = 3.7
        with torch._dynamo.config.patch(error_on_recompile=True), pytest.raises(torch._dynamo.exc.RecompileError):
            compiled(input_ids=IDS, use_cache=False)


def test_a_classifiers_head_and_names_are_swapped_too(tmp_path):
    fields = {"build": bert, "task_type": "SEQ_CLS", "target_modules": ["query"]}
    one, two = saved(tmp_path, 1, **fields), saved(tmp_path, 2, **fields)
    model = PeftModel.from_pretrained(bert(), one)
    lorasmith.hotswap_adapter(model, two, "default")
    assert torch.equal(logits(model), alone(two, bert))


def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path):
    model = PeftModel.from_pretrained(llama(), saved(tmp_path, 1, r=4))
    before = logits(model)
    wider = saved(tmp_path, 2, r=6)
    with pytest.raises(AttachError, match=r"\(6, 32\), the place \(4, 32\).*target_rank"):
        lorasmith.hotswap_adapter(model, wider, "default")
    more = saved(tmp_path, 3, r=4, target_modules="all-linear")
    with pytest.raises(AttachError, match=r"unexpected .*gate_proj"):
        lorasmith.hotswap_adapter(model, more, "default")
    dropping = saved(tmp_path, 4, r=4, lora_dropout=0.1)
    with pytest.raises(AttachError, match=r"lora_dropout=0\.1"):
        lorasmith.hotswap_adapter(model, dropping, "default")
    assert torch.equal(logits(model), before)
    model.merge_adapter()
    with pytest.raises(AttachError, match="merged"):
        lorasmith.hotswap_adapter(model, saved(tmp_path, 5, r=4), "default")


def test_room_is_made_before_compiling_and_for_what_is_there(tmp_path):
    model = PeftModel.from_pretrained(llama(), saved(tmp_path, 1, r=4))
    with pytest.raises(AttachError, match="rank 4, above target_rank=3"):
        lorasmith.prepare_model_for_compiled_hotswap(model, target_rank=3)
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(AttachError, match="compiled already"):
        lorasmith.prepare_model_for_compiled_hotswap(compiled, target_rank=8)
    with pytest.raises(AttachError, match="no LoRA"):
        lorasmith.prepare_model_for_compiled_hotswap(llama(), target_rank=8)
