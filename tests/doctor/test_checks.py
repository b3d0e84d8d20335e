from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lorasmith import PromptTuningConfig
from lorasmith.atomic import write_bytes
from lorasmith.attach import attach
from lorasmith.data import Example
from lorasmith.doctor import Job, Place, examine, job_checks, place_checks
from lorasmith.errors import InputError, WriteError
from lorasmith.planning import MemoryPlan

ROWS, CONTEXT, EOS = 20, 16, 2


class Tokenizer:
    """The little that the checks read of a tokenizer."""

    eos_token = "</s>"
    eos_token_id = EOS
    all_special_tokens = ["</s>"]
    all_special_ids = [EOS]

    def __len__(self):
        return ROWS


@pytest.fixture(scope="module")
def model():
    config = LlamaConfig(
        vocab_size=ROWS, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    return model


@pytest.fixture
def job(model):
    """A job without a fault: an answer of two tokens that ends."""
    examples = [Example([5, 6, 7, EOS], [-100, -100, 7, EOS])]
    return Job("causal", model, Tokenizer(), examples, CONTEXT, MemoryPlan({"all": 10}), 100)


def messages(job, severity):
    return [finding.message for finding in examine(job_checks, job) if finding.severity == severity]


def test_a_sound_job_has_no_findings(job):
    assert examine(job_checks, job) == []


def test_masked_labels_stop_the_run(job):
    with pytest.raises(InputError, match="all labels are masked"):
        examine(job_checks, replace(job, examples=[Example([5, 6, EOS], [-100] * 3)]))


def test_a_label_on_the_first_token_alone_is_no_target(job):
    with pytest.raises(InputError, match="all labels are masked"):
        examine(job_checks, replace(job, examples=[Example([5, 6], [5, -100])]))


def test_some_masked_examples_are_counted(job):
    silent = Example([5, 6, EOS], [-100] * 3)
    assert "1 of 2 examples" in messages(replace(job, examples=[*job.examples, silent]), "warning")[0]


def test_a_classifier_with_one_class_stops_the_run(job):
    with pytest.raises(InputError, match="same label"):
        examine(job_checks, replace(job, task="classification", examples=[Example([5, 6], 0), Example([7], 0)]))


def test_answers_that_never_end_are_warned_of(job):
    endless = Example([5, 6, 7, 8], [-100, -100, 7, 8])
    assert "stop" in messages(replace(job, examples=[endless]), "warning")[0]


def test_an_end_that_is_seen_but_not_learned_is_warned_of(job):
    masked_end = Example([5, 6, 7, EOS], [-100, -100, 7, -100])
    assert "'</s>'" in messages(replace(job, examples=[masked_end]), "warning")[0]


def test_plain_text_needs_no_end(job):
    assert messages(replace(job, examples=[Example([5, 6, 7], [5, 6, 7])]), "warning") == []


def test_a_token_beyond_the_embedding_stops_the_run(job):
    with pytest.raises(InputError, match=f"token {ROWS}, the model's embedding only {ROWS} rows"):
        examine(job_checks, replace(job, examples=[Example([5, ROWS, EOS], [5, ROWS, EOS])]))


def test_an_example_beyond_the_context_stops_the_run(job):
    long = [5] * (CONTEXT + 1)
    with pytest.raises(InputError, match=f"max_length={CONTEXT}"):
        examine(job_checks, replace(job, examples=[Example(long, long)]))
    assert examine(job_checks, replace(job, examples=[Example(long[1:], long[1:])])) == []


@pytest.mark.parametrize(("tokens", "fix"), [(4, "data.max_length=12"), (40, "num_virtual_tokens=40")])
def test_virtual_tokens_take_positions_too(job, tokens, fix):
    model = LlamaForCausalLM(job.model.config)
    attach(model, PromptTuningConfig(num_virtual_tokens=tokens))
    long = [5] * (CONTEXT - 3)
    with pytest.raises(InputError, match=f"{tokens} virtual ones before them, .*{fix}"):
        examine(job_checks, replace(job, model=model, examples=[Example(long, long)]))


def test_a_model_in_which_nothing_trains_stops_the_run(job):
    frozen = LlamaForCausalLM(job.model.config).requires_grad_(False)
    with pytest.raises(InputError, match="nothing would train"):
        examine(job_checks, replace(job, model=frozen))


def test_a_large_trained_share_is_warned_of(job):
    whole = LlamaForCausalLM(job.model.config)
    assert "100 % of all parameters" in messages(replace(job, model=whole), "warning")[0]


def test_trained_float16_stops_the_run(job):
    half = LlamaForCausalLM(job.model.config).requires_grad_(False)
    half.lm_head.weight = nn.Parameter(half.lm_head.weight.half())
    with pytest.raises(InputError, match=r"float16 .*lm_head.weight"):
        examine(job_checks, replace(job, model=half))


def test_too_little_memory_is_warned_of(job):
    assert "gradient_checkpointing" in messages(replace(job, available=9), "warning")[0]


def test_too_little_host_memory_for_what_waits_there_is_warned_of(job):
    waiting = replace(job, plan=MemoryPlan({}, "cuda", host=1 << 30), host_available=1 << 20)
    assert "1.00 GiB of a step are to wait in host memory" in messages(waiting, "warning")[0]
    assert messages(replace(waiting, host_available=1 << 31), "warning") == []


def test_too_little_disk_is_warned_of(job, tmp_path, monkeypatch):
    assert messages(replace(job, output=tmp_path / "run"), "warning") == []
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    # 20 x 16 trained elements: four checkpoints of 12 bytes each and the adapter of 4
    assert "16.2 KiB" in messages(replace(job, output=tmp_path / "run"), "warning")[0]


def test_untrained_rows_of_new_tokens_are_warned_of(job):
    assert "3 tokens are new" in messages(replace(job, new_rows=3), "warning")[0]


def test_all_faults_are_told_at_once(job):
    bad = Example([ROWS] * (CONTEXT + 1), [-100] * (CONTEXT + 1))
    with pytest.raises(InputError) as caught:
        examine(job_checks, replace(job, examples=[bad]))
    for part in ("all labels are masked", "embedding only", "max_length="):
        assert part in str(caught.value)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path / "runs" / "x", torch.device("cpu"), None)


def test_a_writable_place_is_left_as_it_was(place, tmp_path):
    assert examine(place_checks, place) == []
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_a_file_stops_the_run(place, tmp_path):
    write_bytes(tmp_path / "taken", b"")
    with pytest.raises(InputError, match="taken is a file"):
        examine(place_checks, replace(place, output=tmp_path / "taken"))


def test_a_disk_that_refuses_stops_the_run(place, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(WriteError, match="disk is full"):
        examine(place_checks, place)


def test_float16_activations_on_a_cpu_are_warned_of(place):
    (finding,) = examine(place_checks, replace(place, dtype=torch.float16))
    assert (finding.severity, "training.dtype=fp32" in finding.message) == ("warning", True)
    assert examine(place_checks, replace(place, dtype=torch.float16, device=torch.device("cuda"))) == []


def test_checkpoints_that_should_leave_a_cpu_stop_the_run(place):
    with pytest.raises(InputError, match=r"offload_checkpoints=true moves them from a CUDA GPU .* device is cpu"):
        examine(place_checks, replace(place, offloads=True))
    assert examine(place_checks, replace(place, offloads=True, device=torch.device("cuda"))) == []


@pytest.mark.parametrize("instructions", [False, True])
def test_bf16_on_a_processor_without_instructions_for_it_is_warned_of(place, monkeypatch, instructions):
    monkeypatch.setattr("lorasmith.doctor.place.precision.bfloat16_instructions", lambda: instructions)
    findings = examine(place_checks, replace(place, dtype=torch.bfloat16))
    assert [finding.severity for finding in findings] == ([] if instructions else ["warning"])
    assert all("training.dtype=fp32" in finding.message for finding in findings)


def test_a_single_held_out_example_is_told(job):
    assert "only 1 example is held out" in messages(replace(job, held_out=1), "warning")[0]
    assert not messages(replace(job, held_out=2), "warning")


def test_a_warm_up_beyond_the_end_is_warned_of(job):
    told = messages(replace(job, steps=3, warmup=50), "warning")
    assert told == [
        "training.warmup=50 is longer than the run of 3 steps, so the learning rate never reaches its peak; lower it, "
        "or train longer"
    ]
    assert messages(replace(job, steps=3, warmup=0.5), "warning") == []
    assert messages(replace(job, steps=None, warmup=50), "warning") == []
