"""The report counts every parameter once, says why the dense ones are dense, and warns where they are many."""

import logging

import pytest
from transformers import AutoModelForCausalLM

from lorasmith.models.load import load
from lorasmith.models.quantization_config import QuantizationConfig
from lorasmith.models.report import report_on
from lorasmith.quantized import Scheme

# what tests/models/conftest.py builds: vocabulary 100, width 128, 192 inside, 2 layers, 4 heads, 2 for keys and values
EMBEDDING = 100 * 128
LINEARS = 2 * (128 * 128 + 2 * 64 * 128 + 128 * 128 + 3 * 128 * 192)
NORMS = 5 * 128


@pytest.mark.parametrize(("kind", "heads"), [("llama", 1), ("tied", 0)])
def test_parameters_are_counted_once_by_reason(saved, kind, heads):
    report = load(saved(kind), scheme=Scheme()).report
    assert sum(report.quantized.values()) == LINEARS
    expected = {"embeddings": EMBEDDING, "norms": NORMS} | ({"output head": EMBEDDING} if heads else {})
    assert report.by_reason() == expected
    assert report.total == LINEARS + NORMS + EMBEDDING * (1 + heads)


def test_biases_of_quantized_layers_count_as_dense(saved):
    report = load(saved("gpt2"), scheme=Scheme()).report
    assert report.by_reason()["biases"] == 2 * (192 + 64 + 256 + 64)


def test_experts_and_routers_are_named(saved):
    reasons = load(saved("mixtral"), scheme=Scheme()).report.by_reason()
    assert reasons["experts stored as one 3-D parameter"] == 2 * 3 * 3 * 128 * 192
    assert reasons["routers"] == 2 * 3 * 128


def test_a_large_dense_share_is_warned_of_and_a_small_one_is_not(saved, caplog):
    with caplog.at_level(logging.WARNING, "lorasmith"):
        small = load(saved("llama"), scheme=Scheme()).report
    assert small.dense_share < 0.2
    assert caplog.messages == []
    assert not any(line.startswith("warning") for line in small.lines())
    with caplog.at_level(logging.WARNING, "lorasmith"):
        large = load(saved("mixtral", folder="experts"), scheme=Scheme()).report
    assert large.dense_share > 0.2
    assert [message for message in caplog.messages if "parameters stay dense" in message]
    assert any(line.startswith(f"warning: {large.dense_share:.0%} of the parameters") for line in large.lines())


def test_the_hook_warns_too(saved, caplog):
    with caplog.at_level(logging.WARNING, "lorasmith"):
        AutoModelForCausalLM.from_pretrained(saved("gpt2"), quantization_config=QuantizationConfig())
    assert any("parameters stay dense" in message for message in caplog.messages)


def test_a_dense_model_is_reported_without_a_warning(saved):
    report = load(saved("llama")).report
    assert report.quantized == {}
    assert len(report.lines()) == 1


def test_the_lines_name_the_scheme_the_share_and_the_bytes(saved):
    loaded = load(saved("llama"), scheme=Scheme())
    lines = "\n".join(loaded.report.lines())
    assert "quantized (nf4, blocks of 64, double quantization): 14 layers, " in lines
    assert f"not quantized: {loaded.report.dense_share:.1%}" in lines
    assert loaded.report.bytes == report_on(loaded.model).bytes < 4 * loaded.report.total


def test_a_new_head_is_in_the_lines(saved):
    report = load(saved("bert"), task="classification").report
    assert "not in the checkpoint, newly initialised: classifier.bias, classifier.weight" in report.lines()
