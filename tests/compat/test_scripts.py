"""Scripts as PEFT's users write them, each in a process of its own, with the libraries beside ours there or not."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tiny import llama

HERE = Path(__file__).parent


def run(script, *arguments):
    """(lines printed, standard error) of a script that ends well."""
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, done.stderr


def needs(library):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")


@pytest.fixture(scope="module", params=["imported", "absent"])
def generated(request):
    if request.param == "imported":
        needs("peft")
    return run("generating_script.py", request.param)


def test_pipeline_says_what_the_adapted_model_says(generated):
    told = json.loads(generated[0].splitlines()[-1])
    assert told["piped"] == told["adapted"] != told["bare"]


def test_the_streamer_prints_what_is_generated(generated):
    told = json.loads(generated[0].splitlines()[-1])
    assert generated[0].startswith(told["adapted"])


def test_pipeline_does_not_call_the_model_unsupported(generated):
    assert "not supported" not in generated[1]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A Llama in bfloat16 whose widths are multiples of 64: elsewhere bitsandbytes' CPU kernel is wrong."""
    folder = tmp_path_factory.mktemp("models") / "base"
    model = llama(hidden_size=64, intermediate_size=128, initializer_range=0.1)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def commonest(base, bitsandbytes):
    return json.loads(run("commonest_script.py", base, bitsandbytes)[0].splitlines()[-1])


@pytest.fixture(scope="module")
def theirs(base):
    needs("bitsandbytes")
    return commonest(base, "present")


@pytest.fixture(scope="module")
def ours(base):
    return commonest(base, "absent")


@pytest.fixture(params=["theirs", "ours"])
def told(request):
    return request.getfixturevalue(request.param)


def test_the_commonest_script_lowers_the_loss(told):
    assert told["losses"][-1] < 0.8 * told["losses"][0]


def test_preparing_keeps_every_code(told):
    assert len(told["before"]) == 2 * 7
    assert told["after"] == told["before"]


def test_the_layers_are_bitsandbytes_own_before_preparing_and_never_where_it_is_absent(theirs, ours):
    assert theirs["kinds"] == ["Linear4bit"]
    assert ours["kinds"] == ["QuantizedLinear"]


def test_without_bitsandbytes_the_codes_and_losses_are_the_same(theirs, ours):
    assert ours["before"] == theirs["before"]
    assert ours["losses"] == theirs["losses"]
