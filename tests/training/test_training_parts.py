"""Methods with a part of their own in training: penalties, acts after steps, and states that resuming restores."""

import pytest
import torch

from lorasmith import AdaLoraConfig, LoraConfig
from lorasmith.attach import adapters_of, attach
from lorasmith.data.batch import pad
from lorasmith.errors import AttachError, RunError
from lorasmith.methods import TrainingPart
from lorasmith.training import RunFolder, TrainingSettings, run

SETTINGS = TrainingSettings(max_steps=8, learning_rate=3e-2, warmup=2, save_every=1, keep_checkpoints=8)
CONFIG = {"target_modules": ["q_proj", "v_proj"], "init_r": 4, "target_r": 1, "tinit": 1, "tfinal": 2}


class Interrupted(Exception):
    pass


@pytest.fixture
def train(repeating, examples, model):
    start = {name: value.clone() for name, value in model.state_dict().items()}

    class Breaking(repeating):
        def __iter__(self):
            for index, batch in enumerate(super().__iter__()):
                if index == self.last:
                    raise Interrupted
                yield batch

    def trained(folder, last: int | None = None, resume: bool = False, **fields):
        """The adapter's book after a run of AdaLoRA that breaks off behind the batch of that number."""
        base = type(model)(model.config)
        base.load_state_dict(start)
        torch.manual_seed(4)
        book = attach(base, AdaLoraConfig(**(CONFIG | fields)))
        stream = Breaking([pad(examples[:3], 0), pad(examples[3:], 0)])
        stream.last = last
        run(base, stream, SETTINGS, RunFolder(folder), resume=resume)
        return book

    return trained


def tensors(book) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in book.trainable()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_ranks_are_left_where_the_adapter_itself_is_in_16_bits(dtype, model, examples, repeating, tmp_path):
    torch.manual_seed(4)
    book = attach(model.to(dtype), AdaLoraConfig(**CONFIG), float32=False)
    run(model, repeating([pad(examples, 0)]), SETTINGS, RunFolder(tmp_path))
    assert sum(sum(site.kept) for _, site in book.sites("default")) == len(list(book.sites("default")))
    # what was set to zero stays zero under the optimizer's f32 copies
    assert all(int((site.lora_E.weight != 0).sum()) == sum(site.kept) for _, site in book.sites("default"))


# before the first allocation, between two, at the last one, and behind it
@pytest.mark.parametrize("last", [1, 3, 6, 7])
def test_a_resumed_run_is_bit_equal_wherever_it_broke_off(train, last, tmp_path):
    whole = train(tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(tmp_path / "broken", last)
    resumed = train(tmp_path / "broken", resume=True)
    assert tensors(resumed).keys() == tensors(whole).keys()
    assert all(torch.equal(tensors(resumed)[name], value) for name, value in tensors(whole).items())
    assert resumed.configs["default"].to_dict() == whole.configs["default"].to_dict()


def test_resuming_a_finished_run_gives_its_config_again(train, tmp_path):
    whole = train(tmp_path)
    again = train(tmp_path, resume=True)
    assert again.configs["default"].to_dict() == whole.configs["default"].to_dict()
    assert all(torch.equal(tensors(again)[name], value) for name, value in tensors(whole).items())


def test_the_run_ends_at_the_target_rank_and_names_its_number_of_steps(train, tmp_path):
    config = train(tmp_path).configs["default"]
    assert config.total_step == 8
    assert sum(map(sum, config.rank_pattern.values())) == config.target_r * len(config.rank_pattern)


def test_a_run_that_lost_the_scores_is_not_bit_equal(train, tmp_path, monkeypatch):
    whole = train(tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(tmp_path / "broken", 3)
    monkeypatch.setattr("lorasmith.training.checkpoint.load_parts_", lambda checkpoint, parts: None)
    resumed = train(tmp_path / "broken", resume=True)
    assert not all(torch.equal(tensors(resumed)[name], value) for name, value in tensors(whole).items())


def test_a_checkpoint_without_the_methods_state_is_refused(train, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("lorasmith.attach.Adapters.training_parts", lambda book: {})
        with pytest.raises(Interrupted):
            train(tmp_path, 3)
    with pytest.raises(RunError, match=r"holds no method\.safetensors"):
        train(tmp_path, resume=True)


def test_a_schedule_longer_than_the_run_is_refused_at_its_first_step(train, tmp_path):
    with pytest.raises(AttachError, match="tinit=5 and tfinal=3 leave no step of 8"):
        train(tmp_path, tinit=5, tfinal=3)


def test_the_regularizer_pulls_the_factors_towards_orthogonality(train, tmp_path):
    def distance(book) -> float:
        [part] = book.training_parts().values()
        part.config.orth_reg_weight = 1.0
        return part.penalty().item()

    with_it = distance(train(tmp_path / "with", orth_reg_weight=1.0))
    assert with_it < distance(train(tmp_path / "without", orth_reg_weight=0.0)) - 0.1


def test_a_part_that_overrides_nothing_does_nothing():
    part = TrainingPart()
    part.after_step(1, None)
    part.load_state({})
    assert part.penalty() is None
    assert part.state() == {}


def test_methods_without_a_part_and_idle_adapters_have_none(model):
    book = attach(model, AdaLoraConfig(**CONFIG), "adaptive")
    [part] = book.training_parts().values()
    assert book.training_parts()["adaptive"] is part
    attach(model, LoraConfig(target_modules=["q_proj"]), "plain")
    assert adapters_of(model).training_parts() == {}
    book.activate("adaptive", trainable=False)
    assert book.training_parts() == {}
