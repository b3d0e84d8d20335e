"""Adapters that train at once come out as from runs of their own."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lorasmith.attach import adapters_of, attach
from lorasmith.data.batch import concatenate, join, pad
from lorasmith.data.example import Example
from lorasmith.errors import AttachError, DataError, RecipeError, RunError
from lorasmith.methods.ia3 import IA3Config
from lorasmith.methods.lora import LoraConfig
from lorasmith.methods.prompt_tuning import PromptTuningConfig
from lorasmith.models.packed_attention import enable_packing
from lorasmith.training import Job, RunFolder, TrainingSettings, loss_for, run, train_together
from tiny import bert, quantized

ADAPTERS = {
    "small": LoraConfig(r=2, target_modules="all-linear"),
    "large": LoraConfig(r=8, lora_alpha=4, target_modules=["q_proj", "up_proj", "lm_head"]),
    "lengths": LoraConfig(r=3, use_dora=True, target_modules="all-linear", modules_to_save=["embed_tokens"]),
    "scales": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
}
SETTINGS = {
    "small": {"max_steps": 4, "learning_rate": 1e-2, "warmup": 2},
    "large": {"max_steps": 6, "learning_rate": 3e-3, "schedule": "constant", "clip": 0.1, "save_every": 2},
    "lengths": {"max_steps": 5, "accumulation": 2, "weight_decay": 0.1, "schedule": "cosine", "learning_rate": 1e-2},
    "scales": {"max_steps": 3, "learning_rate": 5e-2, "label_smoothing": 0.1},
}
# float32 sums in another order, which Adam's first steps carry on in full: its steps are gradients over their own size
CLOSE = {"atol": 2e-4, "rtol": 1e-3}


def adapted(model: nn.Module, names=tuple(ADAPTERS)) -> nn.Module:
    for name in names:
        torch.manual_seed(len(name))
        attach(model, ADAPTERS[name], name)
        for parameter in adapters_of(model).parameters(name):
            nn.init.normal_(parameter, 1 if parameter.dim() == 1 or name == "scales" else 0, 0.1)
    return model


def settings(name: str) -> TrainingSettings:
    return TrainingSettings(**SETTINGS[name])


def trained(model: nn.Module, name: str) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in adapters_of(model).parameters(name)]


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(params=[pad, concatenate], ids=["padded", "packed"])
def batches(request, examples, repeating):
    """A stream for each adapter, of its own examples; some have a micro-batch with nothing to learn from."""
    form = (lambda chosen: pad(chosen, 0)) if request.param is pad else concatenate

    def stream(name: str):
        first = list(ADAPTERS).index(name)
        return repeating([form(examples[first : first + 2]), form(examples[first + 1 : first + 3])])

    return stream


def base(model: nn.Module, storage: str) -> nn.Module:
    model = quantized(model) if storage == "nf4" else model
    assert enable_packing(model) is None
    return model


@pytest.mark.parametrize("storage", ["dense", "nf4"])
def test_each_comes_out_as_from_a_run_of_its_own(storage, batches, new_model, tmp_path):
    together = adapted(base(new_model(), storage))
    jobs = [Job(name, batches(name), settings(name), RunFolder(tmp_path / name)) for name in ADAPTERS]
    results = train_together(together, jobs)
    for name in ADAPTERS:
        alone = adapted(base(new_model(), storage))
        adapters_of(alone).activate(name)
        before = trained(alone, name)
        result = run(alone, batches(name), settings(name), RunFolder(tmp_path / f"{name} alone"))
        assert result.steps == results[name].steps
        for mine, own, start in zip(trained(together, name), trained(alone, name), before, strict=True):
            assert_close(mine, own, **CLOSE)
            assert not torch.equal(mine, start)
        for mine, own in zip(lines(tmp_path / name), lines(tmp_path / f"{name} alone"), strict=True):
            assert mine["loss"] == pytest.approx(own["loss"], rel=1e-4)
            assert mine["grad_norm"] == pytest.approx(own["grad_norm"], rel=1e-3)
            assert (mine["step"], mine["lr"], mine["supervised_tokens"]) == (
                own["step"],
                own["lr"],
                own["supervised_tokens"],
            )


@pytest.fixture
def jobs(examples, repeating, tmp_path):
    def make(folder: str, **fields):
        return [
            Job(
                name,
                repeating([pad(examples[:2], 0), pad(examples[2:4], 0)]),
                TrainingSettings(**({"max_steps": 4, "save_every": 2, "learning_rate": 1e-2} | fields)),
                RunFolder(tmp_path / folder / name),
            )
            for name in ("small", "lengths")
        ]

    return make


def test_checkpointing_gives_the_same(model, jobs):
    adapted(model, ("small", "lengths"))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    train_together(model, jobs("kept"))
    kept = trained(model, "small") + trained(model, "lengths")
    model.load_state_dict(start, strict=False)
    train_together(model, jobs("recomputed", gradient_checkpointing=True))
    for mine, other in zip(trained(model, "small") + trained(model, "lengths"), kept, strict=True):
        assert_close(mine, other, **CLOSE)


class Killed(Exception):
    """Stands for what ends a process."""


class Ending:
    """A stream that ends the process after some batches."""

    def __init__(self, stream, count: int) -> None:
        self.stream, self.count = stream, count
        self.epoch_batches, self.state_dict = stream.epoch_batches, stream.state_dict

    def __iter__(self):
        for _, batch in zip(range(self.count), self.stream):
            yield batch
        raise Killed


def test_each_resumes_from_its_own_checkpoint(model, jobs):
    adapted(model, ("small", "lengths"))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    train_together(model, jobs("whole"))
    whole = trained(model, "small") + trained(model, "lengths")
    model.load_state_dict(start, strict=False)
    one, other = jobs("broken")
    with pytest.raises(Killed):
        train_together(model, [one, replace(other, loader=Ending(other.loader, 3))])
    model.load_state_dict(start, strict=False)
    results = train_together(model, jobs("broken"), resume=True)
    assert [result.steps for result in results.values()] == [4, 4]
    for mine, other in zip(trained(model, "small") + trained(model, "lengths"), whole, strict=True):
        assert_close(mine, other, **CLOSE)


def test_evaluations_see_their_adapter_alone_and_the_best_weights_stay(model, jobs):
    adapted(model, ("small", "lengths"))
    book, seen, ids = adapters_of(model), {}, torch.arange(1, 7)[None]
    evaluated = []
    for number, job in enumerate(jobs("evaluated", evaluate_every=1)):
        values = iter([3.0, 1.0, 2.0, 4.0] if number == 0 else [4.0, 3.0, 2.0, 1.0])

        def evaluate(name=job.adapter, values=values):
            seen.setdefault(name, []).append(model(input_ids=ids).logits.clone())
            return {"loss": next(values)}

        evaluated.append(replace(job, evaluate=evaluate))
    results = train_together(model, evaluated)
    assert [result.best_step for result in results.values()] == [2, 4]
    for name, result in results.items():
        book.activate(name)
        with torch.no_grad():
            assert_close(model.eval()(input_ids=ids).logits, seen[name][result.best_step - 1], atol=1e-5, rtol=1e-4)


def test_classifiers_train_together(tmp_path, repeating):
    generator = torch.Generator().manual_seed(3)
    examples = [
        Example(torch.randint(1, 60, (length,), generator=generator).tolist(), label)
        for length, label in ((5, 0), (8, 2), (6, 1), (3, 2))
    ]
    streams = {"one": [pad(examples[:2], 0)], "other": [pad(examples[1:], 0)]}

    def made() -> nn.Module:
        model = bert()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                # BERT's own is another in another batch
                module.p = 0.0
        for number, name in enumerate(streams):
            torch.manual_seed(number)
            attach(model, LoraConfig(r=2 + number, task_type="SEQ_CLS", target_modules=["query", "value"]), name)
        return model

    chosen = TrainingSettings(max_steps=3, learning_rate=1e-2)
    together = made()
    jobs = [Job(name, repeating(given), chosen, RunFolder(tmp_path / name)) for name, given in streams.items()]
    results = train_together(together, jobs, task="classification")
    for name, given in streams.items():
        alone = made()
        adapters_of(alone).activate(name)
        loss = loss_for(alone, "classification")
        own = run(alone, repeating(given), chosen, RunFolder(tmp_path / f"{name} alone"), loss=loss)
        assert own.loss == pytest.approx(results[name].loss, rel=1e-4)
        for mine, other in zip(trained(together, name), trained(alone, name), strict=True):
            assert_close(mine, other, **CLOSE)


# --- what is refused


def test_jobs_that_do_not_fit_together_are_refused(model, jobs, tmp_path):
    adapted(model, ("small", "lengths"))
    one, other = jobs("refused")
    with pytest.raises(RecipeError, match="one for each adapter"):
        train_together(model, [one, one])
    with pytest.raises(RecipeError, match="one of its own"):
        train_together(model, [one, replace(other, folder=one.folder)])
    fp32 = TrainingSettings(max_steps=1, dtype="fp32")
    with pytest.raises(RecipeError, match=r"training\.dtype differs"):
        train_together(model, [one, replace(other, settings=fp32)])


def test_adapters_without_rows_of_their_own_are_refused(model, jobs):
    adapted(model, ("small",))
    one, other = jobs("refused")
    attach(model, PromptTuningConfig(num_virtual_tokens=2), "prompt")
    with pytest.raises(AttachError, match="its own batch"):
        train_together(model, [one, replace(other, adapter="prompt")])


def test_an_adapter_whose_loss_is_not_finite_is_named(model, jobs):
    adapted(model, ("small", "lengths"))
    adapters_of(model).parameters("lengths")[0].data.fill_(float("nan"))
    with pytest.raises(RunError, match=r"adapter 'lengths': step 1: the loss is nan.*No checkpoint"):
        train_together(model, jobs("nan"))


def test_packed_and_padded_batches_make_none_together(examples):
    with pytest.raises(DataError, match="padded and packed"):
        join([pad(examples, 0), concatenate(examples)], 0)


def test_jobs_that_cannot_begin_leave_the_active_adapters_as_they_were(model, jobs):
    adapted(model, ("small", "lengths", "scales"))
    book = adapters_of(model)
    book.activate("scales")
    with pytest.raises(RecipeError, match="must be one of"):
        train_together(model, jobs("refused", optimizer="adamv"))
    assert book.active == ["scales"]


def test_modules_are_in_the_modes_that_they_had(model, jobs):
    adapted(model, ("small", "lengths")).eval()
    train_together(model, jobs("modes"))
    assert not any(module.training for module in model.modules())
