"""The loop's promises, one by one."""

import json
from contextlib import nullcontext

import pytest
import torch
from torch._dynamo.utils import counters

from lorasmith.data.batch import concatenate, pad
from lorasmith.errors import RecipeError, RunError
from lorasmith.models.compiled_layers import compiled_layers
from lorasmith.models.packed_attention import enable_packing
from lorasmith.training import RunFolder, TrainingSettings, checkpoint, loop, loss_for, run
from lorasmith.training.schedule import factor


def settings(**fields):
    return TrainingSettings(**({"max_steps": 6, "learning_rate": 1e-2, "warmup": 2, "save_every": 2} | fields))


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steps_on_disk(folder):
    return sorted(int(path.name[5:]) for path in (folder / "checkpoints").iterdir())


@pytest.fixture
def loader(repeating, examples):
    return repeating([pad(examples[:3], 0), pad(examples[3:], 0)])


class Scripted:
    """An evaluation whose numbers are given."""

    def __init__(self, model, values):
        self.model, self.values, self.seen = model, list(values), []

    def __call__(self):
        assert not self.model.training
        assert not torch.is_grad_enabled()
        self.seen.append(self.model.model.norm.weight.detach().clone())
        return {"loss": self.values.pop(0)}


def test_the_loss_falls_and_every_step_has_its_line(model, loader, tmp_path):
    result = run(model, loader, settings(max_steps=20), RunFolder(tmp_path))
    logged = lines(tmp_path)
    assert [line["step"] for line in logged] == list(range(1, 21))
    assert logged[-1]["loss"] < logged[0]["loss"] / 2
    assert (result.steps, result.loss, result.stopped_because) == (20, logged[-1]["loss"], "finished")
    assert logged[0].keys() == {
        "step",
        "loss",
        "lr",
        "grad_norm",
        "tokens_per_second",
        "supervised_tokens",
        "memory_bytes",
        "memory_peak_bytes",
        "time",
    }
    assert [line["lr"] for line in logged] == [1e-2 * factor(step, "linear", 2, 20) for step in range(20)]
    assert 0 < logged[0]["memory_bytes"] <= logged[0]["memory_peak_bytes"]


@pytest.mark.parametrize("fails", [False, True])
def test_modules_are_in_the_modes_that_they_had(fails, model, loader, tmp_path):
    model.eval()
    model.lm_head.train()
    told = settings(best_metric="eval_other") if fails else settings()
    with pytest.raises(RecipeError) if fails else nullcontext():
        run(model, loader, told, RunFolder(tmp_path), evaluate=Scripted(model, [1.0]))
    assert [name for name, module in model.named_modules() if module.training] == ["lm_head"]


def test_a_line_of_several_steps_is_their_mean_over_targets(model, loader, tmp_path):
    run(model, loader, settings(learning_rate=1e-12, log_every=2, max_steps=5), RunFolder(tmp_path / "two"))
    loader.index = 0
    run(model, loader, settings(learning_rate=1e-12, max_steps=5), RunFolder(tmp_path / "one"))
    single, double = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert [line["step"] for line in double] == [2, 4, 5]
    weights = [line["supervised_tokens"] for line in single[:2]]
    mean = sum(weight * line["loss"] for weight, line in zip(weights, single)) / sum(weights)
    assert double[0]["supervised_tokens"] == sum(weights)
    assert double[0]["loss"] == pytest.approx(mean, rel=1e-6)


def test_only_what_requires_a_gradient_moves(model, loader, tmp_path):
    model.requires_grad_(False)
    model.model.layers[1].mlp.requires_grad_()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    run(model, loader, settings(), RunFolder(tmp_path))
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}
    assert moved == {name for name in before if "layers.1.mlp" in name}


@pytest.mark.parametrize("fields", [{"gradient_checkpointing": True}, {"dtype": "fp32"}], ids=str)
def test_recomputing_changes_no_bit_and_is_undone(fields, model, loader, tmp_path):
    twin = type(model)(model.config)
    twin.load_state_dict(model.state_dict())
    run(model, loader, settings(), RunFolder(tmp_path / "a"))
    loader.index = 0
    run(twin, loader, settings(**fields), RunFolder(tmp_path / "b"))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters()))
    assert not twin.model.layers[0].gradient_checkpointing


def test_packed_training_is_padded_training(model, examples, repeating, tmp_path):
    twin = type(model)(model.config)
    twin.load_state_dict(model.state_dict())
    assert enable_packing(twin) is None
    run(model, repeating([pad(examples, 0)]), settings(max_steps=3), RunFolder(tmp_path / "a"))
    run(twin, repeating([concatenate(examples)]), settings(max_steps=3), RunFolder(tmp_path / "b"))
    for one, other in zip(lines(tmp_path / "a"), lines(tmp_path / "b")):
        # f32 sums in another order, and Adam amplifies a little each step
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_the_best_weights_are_those_at_the_end(model, loader, tmp_path):
    evaluate = Scripted(model, [3.0, 1.0, 2.0, 2.5, 2.0, 1.5])
    result = run(model, loader, settings(evaluate_every=1, keep_checkpoints=1), RunFolder(tmp_path), evaluate=evaluate)
    assert (result.best_metric, result.best_step, result.steps) == (1.0, 2, 6)
    assert torch.equal(model.model.norm.weight, evaluate.seen[1])
    assert not torch.equal(evaluate.seen[1], evaluate.seen[5])
    assert steps_on_disk(tmp_path) == [2, 6]
    assert [line["eval_loss"] for line in lines(tmp_path) if "eval_loss" in line] == [3.0, 1.0, 2.0, 2.5, 2.0, 1.5]


def test_patience_counts_evaluations_in_a_row_and_survives_a_resume(model, loader, tmp_path):
    fields = {"evaluate_every": 1, "patience": 2, "max_steps": 9}
    values = [3.0, 4.0, 2.0, 2.0, 2.0]
    result = run(model, loader, settings(**fields), RunFolder(tmp_path), evaluate=Scripted(model, values))
    assert (result.steps, result.best_step, result.stopped_because) == (5, 3, "patience")
    again = run(model, loader, settings(**fields), RunFolder(tmp_path), evaluate=Scripted(model, []), resume=True)
    assert again == result


def test_without_a_cadence_the_end_alone_is_evaluated_and_saved(model, loader, tmp_path):
    fields = {"evaluate_every": None, "save_every": None, "epochs": 1.5, "max_steps": None}
    result = run(model, loader, settings(**fields), RunFolder(tmp_path), evaluate=Scripted(model, [1.0]))
    assert (result.steps, result.best_step) == (3, 3)
    assert steps_on_disk(tmp_path) == [3]


def test_a_loss_that_turns_nan_stops_and_names_the_last_good_checkpoint(model, loader, tmp_path):
    own, calls = loss_for(model, "causal"), []

    def broken(batch):
        calls.append(batch)
        return own(batch) * (float("nan") if len(calls) == 4 else 1)

    with pytest.raises(RunError, match=r"step 4: the loss is nan.*The last good checkpoint is .*step-000002") as caught:
        run(model, loader, settings(), RunFolder(tmp_path), loss=broken)
    assert "\n" not in str(caught.value)
    assert checkpoint.latest(tmp_path / "checkpoints").step == 2
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


def test_a_folder_that_holds_a_run_is_not_trained_into_again(model, loader, tmp_path):
    run(model, loader, settings(max_steps=1), RunFolder(tmp_path))
    with pytest.raises(RecipeError, match="already holds a run; resume it"):
        run(model, loader, settings(max_steps=1), RunFolder(tmp_path))


def test_resuming_an_empty_folder_starts_at_the_beginning(model, loader, tmp_path, caplog):
    result = run(model, loader, settings(max_steps=2), RunFolder(tmp_path), resume=True)
    assert result.steps == 2
    assert "starts from its beginning" in caplog.text


def test_a_longer_run_goes_on_from_where_a_shorter_one_ended(model, loader, tmp_path):
    run(model, loader, settings(max_steps=2, schedule="constant"), RunFolder(tmp_path))
    run(model, loader, settings(max_steps=4, schedule="constant"), RunFolder(tmp_path), resume=True)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
    assert loader.index == 4


def test_a_line_that_spans_a_resume_is_the_line_of_an_uninterrupted_run(model, loader, tmp_path):
    twin = type(model)(model.config)
    twin.load_state_dict(model.state_dict())
    own, calls = loss_for(model, "causal"), []

    def failing(batch):
        calls.append(batch)
        if len(calls) == 5:
            raise RunError("stopped")
        return own(batch)

    # checkpoints after steps 2 and 4, lines after 3 and 6: the second line begins before the resume
    with pytest.raises(RunError, match="stopped"):
        run(model, loader, settings(log_every=3), RunFolder(tmp_path / "a"), loss=failing)
    run(model, loader, settings(log_every=3), RunFolder(tmp_path / "a"), resume=True)
    loader.index = 0
    run(twin, loader, settings(log_every=3), RunFolder(tmp_path / "b"))
    for one, other in zip(lines(tmp_path / "a"), lines(tmp_path / "b"), strict=True):
        for name in ("step", "loss", "lr", "grad_norm", "supervised_tokens"):
            assert one[name] == other[name]


def test_a_model_with_nothing_to_train_is_refused(model, loader, tmp_path):
    with pytest.raises(RunError, match="no parameter that requires a gradient; attach an adapter"):
        run(model.requires_grad_(False), loader, settings(), RunFolder(tmp_path))


def test_a_metric_that_is_not_evaluated_is_named(model, loader, tmp_path):
    with pytest.raises(RecipeError, match="best_metric='eval_f1' is not evaluated; choose one of eval_loss"):
        run(
            model,
            loader,
            settings(evaluate_every=1, best_metric="eval_f1"),
            RunFolder(tmp_path),
            evaluate=Scripted(model, [1.0]),
        )


def test_loggers_are_closed_where_the_run_fails(model, loader, tmp_path):
    class Kept:
        started, closed = None, False

        def start(self, step, total_steps):
            self.started = (step, total_steps)

        def log(self, step, values):
            pass

        def close(self):
            self.closed = True

    kept = Kept()

    def broken(batch):
        raise RunError("broken")

    with pytest.raises(RunError, match=r"broken\. No checkpoint had been written yet"):
        run(model, loader, settings(), RunFolder(tmp_path), loss=broken, loggers=[kept])
    assert kept.started == (0, 6)
    assert kept.closed


# torch.compile instantiates the autograd.Functions that it traces, and looks at the gradients of a layer's inputs
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_layers_train_as_the_model_does(new_model, repeating, examples, tmp_path, monkeypatch):
    losses = {}
    # a backend that needs no C++ compiler
    monkeypatch.setattr(loop, "compiled_layers", lambda model: compiled_layers(model, "aot_eager"))
    for compile in (False, True):
        loader = repeating([pad(examples[:3], 0)])
        folder = tmp_path / str(compile)
        run(new_model(), loader, settings(max_steps=3, save_every=None, compile=compile), RunFolder(folder))
        losses[compile] = [line["loss"] for line in lines(folder)]
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)
    assert counters["stats"]["unique_graphs"] > 0
