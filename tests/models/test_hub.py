"""A hub name is downloaded with what the caller asked for, and every refusal of the hub becomes one line."""

import pytest
from huggingface_hub import errors

from lorasmith.errors import ModelError
from lorasmith.models import hub
from lorasmith.models.hub import Source, fetch


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What snapshot_download was called with."""
    calls = []

    def download(name, **keywords):
        calls.append((name, keywords))
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    return calls


def test_revision_token_and_offline_reach_the_hub(asked, tmp_path):
    assert fetch(Source("owner/name", "v2", "secret", True)) == tmp_path
    ((name, keywords),) = asked
    assert name == "owner/name"
    assert (keywords["revision"], keywords["token"], keywords["local_files_only"]) == ("v2", "secret", True)


def test_pickles_are_never_downloaded_and_code_only_when_trusted(asked):
    fetch(Source("owner/name"))
    fetch(Source("owner/name", trust_remote_code=True))
    plain, trusted = (keywords["allow_patterns"] for _, keywords in asked)
    assert "*.safetensors" in plain
    assert not {"*.bin", "*.pt", "*.py", "*"} & set(plain)
    assert set(trusted) - set(plain) == {"*.py"}


def test_a_folder_of_that_name_goes_before_the_hub(asked, tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert fetch(Source("owner/name")).resolve() == tmp_path / "owner" / "name"
    assert asked == []


@pytest.mark.parametrize(
    ("error", "pattern"),
    [
        (errors.GatedRepoError, "is gated; accept its terms"),
        (errors.RevisionNotFoundError, "has no revision 'v2'"),
        (errors.RepositoryNotFoundError, "neither a folder here nor a hub model"),
        (errors.LocalEntryNotFoundError, "the hub cannot be reached; download it first"),
        (errors.HfHubHTTPError, "could not be downloaded: first line"),
        (ConnectionError, "could not be downloaded: first line"),
    ],
)
def test_a_refusal_of_the_hub_is_one_line_with_the_name(monkeypatch, error, pattern):
    # their constructors want a response of the HTTP library of the day
    refusal = error.__new__(error)
    refusal.args = ("first line\nsecond line",)

    def refuse(*arguments, **keywords):
        raise refusal

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(ModelError, match=f"owner/name.*{pattern}") as caught:
        fetch(Source("owner/name", "v2"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gpt2", "bert-base-uncased", "owner/name-1.1B"])
def test_names_of_the_hub_may_lack_an_owner(asked, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fetch(Source(name))
    assert asked[0][0] == name


@pytest.mark.parametrize("name", ["./gpt2", "/gpt2", "~/gpt2", "a/b/c", "a\\b", "runs/"])
def test_what_can_only_be_a_path_asks_no_hub(asked, name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ModelError, match="does not exist"):
        fetch(Source(name))
    assert asked == []
