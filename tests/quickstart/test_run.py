"""The embedded base, and the quickstart's run from end to end with few steps."""

import json

import pytest
import torch

from lorasmith.models.load import load
from lorasmith.quickstart.__main__ import summary, unused_folder
from lorasmith.quickstart.run import BASE, SCHEME, Options, quickstart
from lorasmith.quickstart.score import answers, exact_match
from lorasmith.quickstart.task import Item, make_task
from lorasmith.quickstart.world import COLOURS, JOBS, KINDS, PEOPLE, PLACES, TOWNS, make_world


@pytest.fixture(scope="module")
def base():
    return load(BASE, scheme=SCHEME, dtype=torch.float32, device="cpu", offline=True)


@pytest.fixture(scope="module")
def test_items():
    return make_task(make_world(), 10, 10, seed=0).test


def test_the_embedded_weights_are_below_four_megabytes():
    assert (BASE / "model.safetensors").stat().st_size < 4_000_000


def test_the_tokenizer_knows_every_word_of_the_world_as_one_token(base):
    words = [thing.name for thing in make_world().things] + [*COLOURS, *JOBS, *KINDS, *PEOPLE, *PLACES, *TOWNS]
    split = [word for word in words if len(base.tokenizer(f" {word}", add_special_tokens=False).input_ids) != 1]
    assert not split


def test_the_base_in_nf4_remembers_the_facts_of_the_world(base):
    things = make_world().things
    said = answers(base.model, base.tokenizer, [f"The colour of the {thing.name} is" for thing in things])
    right = sum(text.startswith(thing.colour) for text, thing in zip(said, things))
    # a few may be lost to four bits; none known would be an eighth
    assert right >= 0.9 * len(things)


def test_the_base_as_it_is_fails_the_task(base, test_items):
    assert exact_match(base.model, base.tokenizer, test_items) < 0.6


def test_an_answer_counts_only_whole(base):
    prompt = "The colour of the hammer is"
    said = answers(base.model, base.tokenizer, [prompt])[0]
    assert len(said.split()) > 1
    whole, part = (Item(prompt, f" {text}", frozenset()) for text in (said, said.split()[0].rstrip(".")))
    assert exact_match(base.model, base.tokenizer, [whole, part]) == 0.5


def test_padding_does_not_change_an_answer(base, test_items):
    short, long = "Mira", test_items[0].prompt
    assert answers(base.model, base.tokenizer, [short, long]) == [
        *answers(base.model, base.tokenizer, [short]),
        *answers(base.model, base.tokenizer, [long]),
    ]


@pytest.mark.slow
def test_a_short_run_learns_and_leaves_a_report_and_says_what_came_of_it(tmp_path):
    result = quickstart(Options(steps=40, output=tmp_path / "run", device="cpu"), lambda line: None)
    # chance among eight answers is 0.125; 40 steps reach well over it
    assert result.before < 0.1 and result.after > 0.25
    assert result.adapter_bytes < result.quantized_bytes < result.dense_bytes
    assert result.report.is_file()
    records = [json.loads(line) for line in (tmp_path / "run-data" / "test.jsonl").read_text().splitlines()]
    assert len(records) == result.items
    text = "\n".join(summary(result, 1.0))
    assert f"{result.after:.1%}" in text and str(result.report) in text and text.count("lorasmith ") >= 3


def test_the_run_folder_is_the_first_that_is_free(tmp_path):
    first = tmp_path / "quickstart"
    assert unused_folder(first) == first
    first.mkdir()
    assert unused_folder(first).name == "quickstart-2"
