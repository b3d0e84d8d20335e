import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("classic_script.py")


@pytest.fixture(scope="module", params=["present", "absent"])
def result(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    command = [sys.executable, str(SCRIPT), str(folder), request.param]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


def test_the_classic_script_trains_and_evaluates_under_trainer(result):
    # six steps and two evaluations
    assert len(result["whole"]) == 8


def test_a_checkpoint_holds_the_adapter_and_not_the_base(result):
    assert len(result["keys"]) == 2 * 2 * 2
    assert all("lora_" in key for key in result["keys"])


def test_resuming_gives_the_same_losses(result):
    assert result["resumed"] == result["whole"]
