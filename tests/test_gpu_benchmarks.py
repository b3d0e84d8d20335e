"""benchmarks/gpu: every part works end to end in a toy's shapes on a CPU, and its file and table hold what was told."""

import importlib
import json
import os
import runpy
import subprocess
import sys
import time
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
    assert len(rows) == 3
    assert [row for row in rows if "skipped" not in row]
    assert all(row["allocated"] > 0 and len(row["losses"]) == 2 for row in rows if "skipped" not in row)


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
    ours, peers = rows["ours"], [rows["PEFT + bitsandbytes"], rows["PEFT + bitsandbytes, bf16 kept"]]
    # bf16 rounds them in other places
    assert [peer["first_loss"] for peer in peers] == pytest.approx([ours["first_loss"]] * 2, rel=1e-2)
    assert ours["share_of_matmul"] > ours["share_of_model"] > 0
    assert all(peer["allocated"] > 0 for peer in peers)


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


def test_ratios_are_to_the_peer_where_it_is_best(tmp_path):
    ways = {"ours": (10.0, 4e9), "PEFT + bitsandbytes": (2.0, 9e9), "PEFT + bitsandbytes, bf16 kept": (4.0, 16e9)}
    rows = [
        {"name": "step, 4 x 2048", "way": way, "tokens_per_second": speed, "allocated": memory}
        for way, (speed, memory) in ways.items()
    ]
    parts = {"qlora_step": {"ended": "well", "rows": rows}}
    table = table_of(tmp_path / "gpu.json", {"tiny": False, "command": "", "parts": parts})
    assert "| QLoRA step, 8B shape: tokens/s over PEFT + bitsandbytes | at least 2.50x | 2.50x | reached |" in table
    assert "| the same: peak memory over PEFT + bitsandbytes | at most 0.50x | 0.44x | reached |" in table


@pytest.mark.parametrize(("finished", "shown"), [(True, "0 | reached"), (False, "unmeasured | -")])
def test_tests_that_were_ended_early_have_not_passed(tmp_path, finished, shown):
    rows = [{"name": "tests", "passed": 5, "failed": 0, "skipped": 0, "failures": [], "finished": finished}]
    parts = {"gpu_tests": {"ended": "well", "rows": rows}}
    table = table_of(tmp_path / "gpu.json", {"tiny": False, "command": "", "parts": parts})
    assert f"| tests of the operations that failed | at most 0 | {shown} |" in table


def test_a_plot_is_drawn_of_what_was_measured(tmp_path):
    pytest.importorskip("matplotlib")
    step = {"name": "step, 4 x 2048", "way": "ours", "tokens_per_second": 10.0}
    parts = {"qlora_step": {"ended": "well", "rows": [step]}}
    (tmp_path / "gpu.json").write_text(json.dumps({"tiny": False, "command": "", "parts": parts}))
    command = [str(FOLDER / "gpu_table.py"), "--out", str(tmp_path / "gpu.json"), "--plot"]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    assert (tmp_path / "gpu.png").stat().st_size > 1000


PARTS = {
    "tells": 'import sys\nsys.stdin.readline()\nprint(\'{"name": "a"}\', flush=True)',
    "dies": 'import os, sys\nprint(\'{"name": "a"}\\n{"name": \', flush=True)\nos.abort()',
    "hangs": 'import sys, time\nprint(\'{"name": "a"}\', flush=True)\ntime.sleep(600)',
}


@pytest.fixture
def small_run(tmp_path, monkeypatch):
    """run.py with parts that need no library, in two stages; the seconds that each may take and the file it writes."""
    for path in PATHS:
        monkeypatch.syspath_prepend(path)
    run = importlib.import_module("run")
    monkeypatch.setattr(run, "HERE", tmp_path)
    for name, text in PARTS.items():
        (tmp_path / f"{name}.py").write_text(text)
    stages = [[run.Part("hangs", 4, 0), run.Part("dies", 30, 0)], [run.Part("tells", 30, 0)]]
    record = run.Record(tmp_path / "gpu.json", {}, {})
    return run.Run(stages, [], False, time.monotonic() + 60, record)


def test_a_part_that_hangs_or_dies_ends_and_the_next_goes_on(small_run):
    assert not small_run.carry_out()
    parts = json.loads(small_run.record.path.read_text())["parts"]
    ends = {name: (part["ended"], part["rows"]) for name, part in parts.items()}
    rows = [{"name": "a"}]
    # half a line is no row
    assert ends == {"hangs": ("out of time", rows), "dies": ("with exit code -6", rows), "tells": ("well", rows)}


def test_nothing_of_a_run_that_is_interrupted_stays_behind(small_run, monkeypatch):
    started = []

    def started_now(self, stage):
        if started:
            # while the first stage runs
            raise KeyboardInterrupt
        started.extend(run.Running(part, []) for part in stage)
        return started

    run = importlib.import_module("run")
    monkeypatch.setattr(run.Run, "_started", started_now)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        small_run.carry_out()
    # sooner than the part that hangs is ended
    assert time.monotonic() - began < 4
    assert all(running.process.poll() is not None for running in started)


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
