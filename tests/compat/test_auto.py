"""AutoPeftModel and its siblings: base and adapter in one call, from what our files and PEFT's say."""

import json

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForQuestionAnswering, AutoModelForTokenClassification

import lorasmith
from compat.cases import SHAPES
from lorasmith.compat.auto import _BY_TASK
from lorasmith.errors import AdapterError
from tiny import bert, gpt2, llama, shake, t5, vit

TEXT = SHAPES["llama"].inputs


def saved(model, folder):
    model.save_pretrained(folder)
    return folder


def of(auto, folder):
    """The folder of a BERT of that class."""
    config = bert().config
    # a span has two ends
    config.num_labels = 2
    return saved(auto.from_config(config), folder / "base")


SIBLINGS = {
    "CAUSAL_LM": (lambda folder: saved(llama(), folder), "CausalLM"),
    "SEQ_CLS": (lambda folder: saved(bert(), folder), "SequenceClassification"),
    "SEQ_2_SEQ_LM": (lambda folder: saved(t5(), folder), "Seq2SeqLM"),
    "TOKEN_CLS": (lambda folder: of(AutoModelForTokenClassification, folder), "TokenClassification"),
    "QUESTION_ANS": (lambda folder: of(AutoModelForQuestionAnswering, folder), "QuestionAnswering"),
    "FEATURE_EXTRACTION": (lambda folder: of(AutoModel, folder), "FeatureExtraction"),
}


def first_output(model, task):
    inputs = SHAPES["t5"].inputs if task == "SEQ_2_SEQ_LM" else TEXT
    with torch.no_grad():
        return torch.cat(
            [part.flatten() for part in model.eval()(**inputs).to_tuple() if isinstance(part, torch.Tensor)]
        )


@pytest.mark.parametrize("library", ["lorasmith", "peft"])
@pytest.mark.parametrize("task", SIBLINGS)
@pytest.mark.parametrize("name", ["AutoPeftModel", "sibling"])
def test_each_task_has_its_sibling(task, name, library, tmp_path):
    """The file may be ours or PEFT's; the class may be left to the file."""
    theirs = pytest.importorskip(library)
    build, suffix = SIBLINGS[task]
    base = build(tmp_path)
    sibling = getattr(lorasmith, f"AutoPeftModelFor{suffix}")
    bare = _BY_TASK[task].from_pretrained(base)
    model = shake(theirs.get_peft_model(bare, theirs.LoraConfig(task_type=task)))
    model.save_pretrained(tmp_path / "adapter")
    chosen = sibling if name == "sibling" else lorasmith.AutoPeftModel
    again = chosen.from_pretrained(tmp_path / "adapter")
    assert type(again).__name__ == f"PeftModelFor{suffix}"
    assert_close(first_output(again, task), first_output(model, task), atol=2e-6, rtol=0)


def test_a_sibling_for_another_task_is_refused(tmp_path):
    base = type(gpt2()).from_pretrained(saved(gpt2(), tmp_path / "base"))
    config = lorasmith.LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True)
    lorasmith.get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(
        AdapterError, match="for the task CAUSAL_LM, and AutoPeftModelForSequenceClassification for SEQ_CLS"
    ):
        lorasmith.AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("writer", "reader"), [("lorasmith", "lorasmith"), ("lorasmith", "peft"), ("peft", "lorasmith")]
)
def test_without_a_task_the_file_says_of_which_class_the_base_is(writer, reader, tmp_path):
    pytest.importorskip("peft")
    writing, reading = pytest.importorskip(writer), pytest.importorskip(reader)
    base = type(vit()).from_pretrained(saved(vit(), tmp_path / "base"))
    fields = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"]}
    model = shake(writing.get_peft_model(base, writing.LoraConfig(**fields)).eval())
    model.save_pretrained(tmp_path / "adapter")
    again = reading.AutoPeftModel.from_pretrained(tmp_path / "adapter").eval()
    pictures = SHAPES["vit"].inputs
    with torch.no_grad():
        assert_close(again(**pictures).logits, model(**pictures).logits, atol=2e-6, rtol=0)


def test_a_class_that_is_none_of_transformers_models_is_not_imported(tmp_path):
    base = type(llama()).from_pretrained(saved(llama(), tmp_path / "base"))
    lorasmith.get_peft_model(base, lorasmith.LoraConfig()).save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    noted = {"base_model_class": "Popen", "parent_library": "subprocess"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_mapping": noted}))
    with pytest.raises(AdapterError, match="names the class 'Popen'"):
        lorasmith.AutoPeftModel.from_pretrained(tmp_path / "adapter")
