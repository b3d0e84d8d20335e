"""benchmarks/gpu: every part works end to end in a toy's shapes on a CPU, and its file and table hold what was told."""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / "benchmarks" / "gpu"
PAGE = REPOSITORY / "docs" / "gpu.md"
BEGIN, END = "<!-- table: python benchmarks/gpu/gpu_table.py --write -->", "<!-- end of the table -->"
PATHS = [str(FOLDER), str(FOLDER.parent), str(REPOSITORY / "src")]

Part = Callable[[str], list[dict[str, Any]]]


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Part:
    """The rows that a part tells when it is run tiny on the CPU, in this process."""
    for path in PATHS:
        monkeypatch.syspath_prepend(path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(PATHS))

    def run(name: str) -> list[dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", [str(FOLDER / f"{name}.py"), "--device", "cpu", "--tiny"])
        runpy.run_path(sys.argv[0], run_name="__main__")
        rows = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith('{"name"')]
        assert rows
        assert not [row for row in rows if "error" in row]
        return rows

    return run


def test_every_kernel_is_timed_beside_its_peers(part):
    rows = part("kernel_rates")
    assert {row["way"] for row in rows} == {"ours", "bitsandbytes", "PyTorch", "PyTorch, bf16 weight"}
    assert all(row["seconds"] > 0 and row["share"] > 0 for row in rows)


def test_every_way_to_hold_the_optimizer_tells_its_peak_or_why_not(part):
    rows = part("peaks")
    assert len(rows) == 4
    assert [row for row in rows if "skipped" not in row]
    assert all(row["allocated"] > 0 and len(row["losses"]) == 3 for row in rows if "skipped" not in row)


def test_the_plan_of_a_toy_is_near_its_live_tensors(part):
    *rows, all_of_them = part("plan_peaks")
    assert all_of_them["configurations"] == len(rows)
    # other tensors of this process count in what was live, so that the plan stays below it
    assert all(0 < row["ratio"] < 2 for row in rows)


def test_the_longest_sequence_is_found_from_the_plan(part):
    rows = part("longest")
    found = [row for row in rows if row["name"] == "longest on 24 GB" and "skipped" not in row]
    assert found
    assert all(row["length"] == row["planned"] > 1 for row in found)


def test_every_way_of_decoding_gives_the_same_tokens(part):
    rows = part("decoding")
    assert [row["way"] for row in rows] == ["eager", "CUDA graphs", "CUDA graphs, fused blocks"]
    assert all(row["tokens_per_second"] > 0 and row["share"] > 0 and row["same"] for row in rows)


def test_loading_is_told_beside_its_bounds(part):
    bounds, *rows = part("disk_to_gpu")
    assert bounds["read_cached"] > 0
    assert [row["way"] for row in rows] == ["page cache cached", "page cache dropped"]


@pytest.mark.slow
def test_losses_on_the_device_agree_with_the_reference(part):
    rows = part("against_reference")
    assert [row["name"] for row in rows] == ["losses, f32", "losses, bf16"]
    assert all(row["agree"] for row in rows)


@pytest.mark.slow
def test_ours_and_the_peer_start_a_step_from_the_same_loss(part):
    rows = {row["way"]: row for row in part("qlora_step")}
    ours, peer = rows["ours"], rows["PEFT + bitsandbytes"]
    # bf16 rounds the two in other places
    assert ours["first_loss"] == pytest.approx(peer["first_loss"], rel=1e-2)
    assert ours["tokens_per_second"] > 0
    assert peer["allocated"] > 0


def test_a_run_keeps_each_row_as_it_comes_and_says_what_it_had_no_time_for(tmp_path):
    path = tmp_path / "gpu.json"
    command = [str(FOLDER / "run.py"), "--device", "cpu", "--tiny", "--out", str(path), "--most-seconds", "0"]
    done = subprocess.run([sys.executable, *command], check=False, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    content = json.loads(path.read_text())
    assert {entry["ended"] for entry in content["parts"].values()} == {"not begun: no time left"}
    assert next(iter(content["parts"])) == "facts"


def test_what_measures_nothing_is_not_written_among_the_results(tmp_path):
    done = subprocess.run(
        [sys.executable, str(FOLDER / "run.py"), "--device", "cpu", "--tiny"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "give --out outside" in done.stderr


def test_the_table_is_the_one_of_the_committed_results():
    printed = subprocess.run(
        [sys.executable, str(FOLDER / "gpu_table.py")], check=True, capture_output=True, text=True
    ).stdout
    written = PAGE.read_text().split(BEGIN)[1].split(END)[0]
    assert written.strip() == printed.strip(), "run python benchmarks/gpu/gpu_table.py --write"


def test_figures_of_a_toy_stay_out_of_the_table(tmp_path):
    path = tmp_path / "gpu.json"
    rows = [{"name": "plan, all", "configurations": 2, "worst": 0.01}]
    parts = {"plan_peaks": {"ended": "well", "rows": rows}}
    assert "reached" not in table_of(path, {"tiny": True, "command": "", "parts": parts})
    real = table_of(path, {"tiny": False, "command": "", "parts": parts})
    assert "| memory plan against the measured peak, largest error | at most 8.0% | 1.0% | reached |" in real


def table_of(path: Path, content: dict[str, Any]) -> str:
    path.write_text(json.dumps(content))
    command = [sys.executable, str(FOLDER / "gpu_table.py"), "--out", str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_only_wheels_of_what_is_missing_are_installed(tmp_path):
    # Pydantic_Core is installed, spelled otherwise
    for name in ("torch-9.0-py3-none-any.whl", "Pydantic_Core-9.0-py3-none-any.whl", "no_such-1.0-py3-none-any.whl"):
        (tmp_path / name).touch()
    command = [sys.executable, str(FOLDER / "missing_wheels.py"), str(tmp_path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert [Path(wheel).name for wheel in printed] == ["no_such-1.0-py3-none-any.whl"]
