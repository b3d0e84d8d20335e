"""Each logger takes a run's numbers, and forgets those of steps that a resume repeats."""

import io
import json

import pytest
from rich.console import Console

from lorasmith.errors import InputError, RecipeError
from lorasmith.training import LoggerContext, RunFolder, loggers
from lorasmith.training.loggers import tensorboard, wandb
from lorasmith.training.loggers.jsonl import JsonLines
from lorasmith.training.loggers.progress import ProgressDisplay

VALUES = {"loss": 1.5, "tokens_per_second": 1234.0, "memory_bytes": 2**30, "memory_peak_bytes": 2**31}


def test_the_table_lists_them_and_refuses_a_stranger(tmp_path):
    assert loggers.names() == ["progress", "tensorboard", "wandb"]
    with pytest.raises(InputError, match="Did you mean 'tensorboard'"):
        loggers["tensorbord"]


def test_what_is_not_finite_is_null_in_its_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    logger = JsonLines(path)
    logger.start(0, 5)
    logger.log(1, {"eval_loss": 0.5, "eval_perplexity": float("inf")})
    logger.close()
    line = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert (line["eval_loss"], line["eval_perplexity"]) == (0.5, None)


def test_lines_of_repeated_steps_and_half_lines_are_dropped_on_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = JsonLines(path)
    first.start(0, 5)
    for step in (1, 2, 3):
        first.log(step, {"loss": float(step)})
    first.log(2, {"eval_loss": 0.5})
    first.close()
    with path.open("a") as file:
        file.write('{"step": 1, "lo')
    second = JsonLines(path)
    second.start(2, 5)
    second.log(3, {"loss": 30.0})
    second.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line.get("loss")) for line in lines] == [(1, 1.0), (2, 2.0), (2, None), (3, 30.0)]


def test_each_line_is_on_the_disk_at_once(tmp_path):
    logger = JsonLines(tmp_path / "metrics.jsonl")
    logger.start(0, 5)
    logger.log(1, {"loss": 2.0})
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] == 2.0
    logger.close()


def test_tensorboard_reads_back_what_was_logged(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = loggers["tensorboard"](LoggerContext(RunFolder(tmp_path)))
    logger.start(0, 5)
    logger.log(1, {"loss": 2.0})
    logger.log(2, {"loss": 1.0})
    logger.close()
    resumed = loggers["tensorboard"](LoggerContext(RunFolder(tmp_path)))
    resumed.start(1, 5)
    resumed.log(2, {"loss": 0.5})
    resumed.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(1, 2.0), (2, 0.5)]


@pytest.mark.parametrize(
    ("module", "attribute", "name"), [(tensorboard, "SummaryWriter", "tensorboard"), (wandb, "wandb", "wandb")]
)
def test_a_missing_package_is_named_with_its_install(module, attribute, name, tmp_path, monkeypatch):
    monkeypatch.setattr(module, attribute, None)
    with pytest.raises(RecipeError, match=rf"needs the package {name}; pip install 'lorasmith\[{name}\]'"):
        loggers[name](LoggerContext(RunFolder(tmp_path)))


def test_weights_and_biases_gets_steps_recipe_and_one_id_a_folder(tmp_path, monkeypatch):
    calls = []

    class Run:
        def log(self, values, step):
            calls.append((step, values))

        def finish(self):
            calls.append("finish")

    class Service:
        @staticmethod
        def init(**keywords):
            calls.append(keywords)
            return Run()

    monkeypatch.setattr(wandb, "wandb", Service)

    def begin(folder, step):
        logger = loggers["wandb"](LoggerContext(RunFolder(folder), {"task": "causal"}))
        logger.start(step, 9)
        return logger

    logger = begin(tmp_path / "mine", 4)
    logger.log(5, {"loss": 1.0})
    logger.close()
    assert calls[0]["name"] == "mine"
    assert (calls[0]["resume"], calls[0]["config"]) == ("allow", {"task": "causal"})
    assert calls[1:] == [(5, {"loss": 1.0}), "finish"]
    begin(tmp_path / "mine", 5)
    begin(tmp_path / "other" / "mine", 0)
    assert calls[3]["id"] == calls[0]["id"] != calls[4]["id"]


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "file"])
def test_the_display_shows_loss_speed_memory_and_progress(terminal):
    output = io.StringIO()
    display = ProgressDisplay(Console(file=output, force_terminal=terminal, width=120))
    display.start(0, 9)
    display.log(3, VALUES)
    display.log(3, {"eval_loss": 0.25})
    display.log(9, VALUES)
    display.close()
    for shown in ("9/9", "loss 1.5000", "1234 tokens/s", "1.00 GiB (peak 2.00)", "eval_loss 0.2500"):
        assert shown in output.getvalue()


def test_without_a_terminal_lines_are_few():
    output = io.StringIO()
    display = ProgressDisplay(Console(file=output, force_terminal=False, width=120))
    display.start(0, 1000)
    for step in range(1, 1001):
        display.log(step, VALUES)
    # the first, the last, and one every ten seconds, which do not pass
    assert len(output.getvalue().splitlines()) == 2


def test_without_a_terminal_no_line_is_broken():
    output = io.StringIO()
    display = ProgressDisplay(Console(file=output, force_terminal=False, width=20))
    display.start(0, 9)
    display.log(9, VALUES)
    display.log(9, {"eval_accuracy": 0.25, "eval_loss": 0.5})
    assert len(output.getvalue().splitlines()) == 2
