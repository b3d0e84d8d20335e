"""Uploading an adapter: exactly its files, and a clear word where the hub does not answer."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import OfflineModeIsEnabled

from lorasmith import LoraConfig, PeftModel, get_peft_model
from lorasmith.attach import split_card
from lorasmith.errors import InputError, RunError
from lorasmith.models import hub_upload
from tiny import bert, llama, shake


@dataclass
class FakeHub:
    """Stands for HfApi: keeps what it is told, and the files that it is given."""

    readme: Path | None = None
    calls: list = field(default_factory=list)
    files: dict = field(default_factory=dict)

    def __call__(self, token=None):
        self.token = token
        return self

    def file_exists(self, repo_id, name, revision=None):
        return self.readme is not None and name == "README.md"

    def hf_hub_download(self, repo_id, name, revision=None):
        return self.readme

    def create_repo(self, repo_id, **options):
        self.calls.append(("create_repo", repo_id, options))
        return SimpleNamespace(repo_id=f"someone/{repo_id}" if "/" not in repo_id else repo_id)

    def upload_folder(self, *, repo_id, folder_path, **options):
        self.calls.append(("upload_folder", repo_id, options))
        self.files = {
            str(p.relative_to(folder_path)): p.read_bytes() for p in Path(folder_path).rglob("*") if p.is_file()
        }
        return "commit"


@pytest.fixture
def hub(monkeypatch):
    fake = FakeHub()
    monkeypatch.setattr(hub_upload, "HfApi", fake)
    return fake


def adapted(**fields) -> PeftModel:
    return shake(get_peft_model(llama(), LoraConfig(task_type="CAUSAL_LM", **fields)).eval())


def test_exactly_the_adapters_files_are_uploaded(hub, tmp_path):
    model = adapted()
    assert model.push_to_hub("mine", private=True, token="secret", commit_message="first") == "commit"
    assert set(hub.files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert hub.token == "secret"
    assert hub.calls[0] == ("create_repo", "mine", {"private": True, "exist_ok": True})
    assert "# mine" in hub.files["README.md"].decode()
    kind, repository, options = hub.calls[1]
    assert (kind, repository, options["commit_message"]) == ("upload_folder", "someone/mine", "first")
    for name, content in hub.files.items():
        (tmp_path / name).write_bytes(content)
    assert PeftModel.from_pretrained(llama(), tmp_path).peft_config["default"].r == 8


def test_a_classifier_brings_the_names_of_its_classes(hub):
    get_peft_model(bert(), LoraConfig(task_type="SEQ_CLS")).push_to_hub("mine")
    assert "class_names.json" in hub.files


def test_the_page_on_the_hub_keeps_its_text(hub, tmp_path):
    hub.readme = tmp_path / "their.md"
    hub.readme.write_text("---\nlicense: mit\n---\n# Written there\n")
    adapted(base_model_name_or_path="someone/some-llama").push_to_hub("mine")
    front, body = split_card(hub.files["README.md"].decode())
    assert body == "# Written there\n"
    assert (front["license"], front["base_model"]) == ("mit", "someone/some-llama")


def test_offline_is_said_in_one_line(hub, monkeypatch):
    def refuse(*args, **kwargs):
        raise OfflineModeIsEnabled("Cannot reach https://huggingface.co")

    monkeypatch.setattr(hub, "file_exists", refuse)
    with pytest.raises(RunError, match="mine was not uploaded: offline mode is on") as caught:
        adapted().push_to_hub("mine")
    assert "\n" not in str(caught.value)


def test_a_hub_that_does_not_answer_is_said(monkeypatch):
    # port 9 discards: nothing listens there
    monkeypatch.setattr(hub_upload, "HfApi", lambda token=None: HfApi(endpoint="http://127.0.0.1:9"))
    with pytest.raises(RunError, match="the hub cannot be reached"):
        adapted().push_to_hub("someone/mine")


def test_a_name_that_the_hub_does_not_take_is_bad_input():
    with pytest.raises(InputError, match="owner/name"):
        adapted().push_to_hub("a/b/c/d")
