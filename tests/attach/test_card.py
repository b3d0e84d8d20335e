"""README.md of an adapter: it says what the adapter is and nothing that is not known."""

import pytest
import torch
import yaml

import lorasmith
from compat.cases import CASES, SHAPES
from lorasmith import BottleneckConfig, LoraConfig, PeftModel, get_peft_model
from lorasmith.attach import CardFacts, adapters_of, content_of, split_card, write_card
from lorasmith.methods import methods
from tiny import bert, llama, shake


def saved(folder, config, build=llama):
    model = shake(get_peft_model(build(), config))
    model.save_pretrained(folder)
    return split_card((folder / "README.md").read_text())


def lora(**fields):
    given = {"task_type": "CAUSAL_LM", "r": 4, "base_model_name_or_path": "someone/some-llama"}
    return LoraConfig(**(given | fields))


def test_the_front_matter_is_what_the_hub_reads(tmp_path):
    front, body = saved(tmp_path, lora())
    assert front == {
        "library_name": "peft",
        "base_model": "someone/some-llama",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "lorasmith", "base_model:adapter:someone/some-llama"],
    }
    # q and v of two layers: 4 (32 + 32) and 4 (32 + 16)
    assert "896 parameters in 8 tensors" in body
    assert "| `r` | 4 |" in body
    assert "| `target_modules` | q_proj, v_proj |" in body
    assert f"lorasmith {lorasmith.__version__}" in body
    assert f"torch {torch.__version__}" in body


def test_nothing_is_said_that_is_not_known(tmp_path):
    _, body = saved(tmp_path, lora(base_model_name_or_path=None))
    assert "whose name was not recorded" in body
    assert "PeftModel.from_pretrained(base," in body
    for word in ("Data", "Scores", "Training", "license", "How it was made"):
        assert word not in body


def test_a_folder_of_this_machine_is_no_name_on_the_hub(tmp_path):
    llama().save_pretrained(tmp_path / "my-base")
    front, body = saved(tmp_path / "adapter", lora(base_model_name_or_path=str(tmp_path / "my-base")))
    assert "base_model" not in front
    assert not [tag for tag in front["tags"] if "base_model" in tag]
    assert str(tmp_path) not in body
    assert "a folder named `my-base`" in body


def test_the_lines_that_load_it_do(tmp_path):
    llama().save_pretrained(tmp_path / "base")
    _, body = saved(tmp_path / "adapter", lora(base_model_name_or_path=str(tmp_path / "base")))
    code = body.split("```python\n")[1].split("```")[0].replace("path/or/hub-name/of/this", str(tmp_path / "adapter"))
    scope: dict = {}
    exec(code, scope)
    assert isinstance(scope["model"], PeftModel)
    pytest.importorskip("peft")
    exec(code.replace("from lorasmith", "from peft"), scope)


def test_a_method_that_peft_has_not_is_not_called_pefts(tmp_path):
    front, body = saved(tmp_path, BottleneckConfig(task_type="CAUSAL_LM"))
    assert front["library_name"] == "lorasmith"
    assert "PEFT does not have this method" in body


def test_a_page_of_ones_own_keeps_its_text_and_its_fields(tmp_path):
    own = "---\nlicense: mit\ntags:\n- mine\nbase_model: old/name\npipeline_tag: other\n---\n# My words\n\nand more\n"
    (tmp_path / "README.md").write_text(own)
    front, body = saved(tmp_path, lora())
    assert body == "# My words\n\nand more\n"
    assert front["license"] == "mit"
    assert front["pipeline_tag"] == "other"
    assert front["base_model"] == "someone/some-llama"
    assert front["tags"] == ["mine", "lora", "lorasmith", "base_model:adapter:someone/some-llama"]


def test_a_page_of_ours_is_written_anew(tmp_path):
    saved(tmp_path, lora())
    _, body = saved(tmp_path, lora(r=2))
    assert "| `r` | 2 |" in body
    assert "| `r` | 4 |" not in body


@pytest.mark.parametrize(
    "text", ["no front matter\n", "---\nnot: [closed\n---\ntext\n", "---\njust a line\n---\ntext\n"]
)
def test_what_is_no_front_matter_is_text(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    front, body = saved(tmp_path, lora())
    assert body == text
    assert front["library_name"] == "peft"


def test_what_is_known_of_its_making_is_told(tmp_path):
    model = get_peft_model(bert(), LoraConfig(task_type="SEQ_CLS"))
    facts = CardFacts(("reviews.jsonl (90 examples)",), "nf4", "20 steps", (("accuracy", "0.5", "0.9"),), "10 examples")
    write_card(tmp_path, content_of(adapters_of(model.get_base_model()), "default"), facts, "mine")
    front, body = split_card((tmp_path / "README.md").read_text())
    assert front["pipeline_tag"] == "text-classification"
    assert "# mine" in body
    assert "- Data: reviews.jsonl (90 examples)" in body
    assert "Scores on 10 examples, with 95 % intervals:" in body
    assert "| accuracy | 0.5 | 0.9 |" in body


def test_front_matter_is_yaml_that_others_read(tmp_path):
    saved(tmp_path, lora())
    text = (tmp_path / "README.md").read_text()
    assert yaml.safe_load(text.split("---\n")[1])["library_name"] == "peft"
    huggingface_hub = pytest.importorskip("huggingface_hub")
    assert huggingface_hub.ModelCard.load(tmp_path / "README.md").data.base_model == "someone/some-llama"


@pytest.mark.parametrize("method", methods.names())
def test_every_method_has_its_page(method, tmp_path):
    """Also one whose config cannot be made of defaults alone."""
    shape, fields = CASES[method][0] if method in CASES else ("bert", {"task_type": "SEQ_CLS"})
    body = saved(tmp_path, methods[method].config_class(**fields), SHAPES[shape].build)[1]
    assert all(f"| `{name}` |" in body for name in fields if name != "task_type")


def test_each_adapter_has_its_page(tmp_path):
    model = get_peft_model(llama(), lora())
    model.add_adapter("other", lora(r=2))
    model.save_pretrained(tmp_path)
    assert "| `r` | 4 |" in (tmp_path / "README.md").read_text()
    assert "| `r` | 2 |" in (tmp_path / "other" / "README.md").read_text()
