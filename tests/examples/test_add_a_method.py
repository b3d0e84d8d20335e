"""docs/add-a-method.md: the method that it builds works, and is the package's own."""

import re
import runpy
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from lorasmith.attach import (
    attach,
    load_adapter,
    load_adapter_state,
    merge_and_unload,
    read_adapter_tensors,
    save_adapter,
)
from lorasmith.methods import methods
from lorasmith.methods.loha import LoHaConfig
from tiny import llama, logits, quantized, shake

PAGE = Path(__file__).resolve().parents[2] / "docs" / "add-a-method.md"
FIELDS = {"target_modules": "all-linear", "r": 3, "alpha": 5}


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The names of the page's file, whose method is registered for one test alone."""
    methods.names()
    monkeypatch.setattr(methods, "_things", dict(methods._things))
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "small_loha.py").write_text(code)
    return runpy.run_path(str(tmp_path / "small_loha.py"))


@pytest.mark.parametrize("base", [llama, lambda: quantized(llama())], ids=["dense", "nf4"])
def test_the_pages_method_has_the_packages_logits_and_is_saved_loaded_and_merged(page, base, tmp_path):
    own, built = base(), base()
    attach(own, LoHaConfig(**FIELDS))
    attach(built, page["SmallLoHaConfig"](**FIELDS))
    save_adapter(shake(own), tmp_path / "own")
    load_adapter_state(built, read_adapter_tensors(tmp_path / "own"))
    # thin products there, a dense one here
    assert_close(logits(built), logits(own), atol=2e-6, rtol=0)
    save_adapter(built, tmp_path / "built")
    again = base()
    load_adapter(again, tmp_path / "built")
    assert torch.equal(logits(again), logits(built))
    # one rounding of the weight in f32
    assert_close(logits(merge_and_unload(again)), logits(own), atol=1e-5, rtol=0)


def test_the_page_names_members_that_sites_have(page):
    site = page["Site"]
    text = PAGE.read_text(encoding="utf-8")
    table = text[text.index("## What a site may say") : text.index("## Tests")]
    named = re.findall(
        r"`(\w+)\(", "".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    )
    assert len(named) >= 10
    assert all(getattr(site, name, None) for name in named)
