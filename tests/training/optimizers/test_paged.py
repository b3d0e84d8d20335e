"""State that pages: where it lies, when it is brought in, its limit, and what is refused before anything is read.

Host memory stands for unified memory here; nothing of this has run on a GPU.
"""

import pytest
import torch
from torch import nn

from lorasmith.errors import DeviceError, RecipeError
from lorasmith.recipes.prepare import prepare
from lorasmith.recipes.reading import build_recipe
from lorasmith.training.optimizers import Optimizer, build, optimizer_memory, optimizers, require_placement
from lorasmith.training.optimizers.adamw import AdamW
from lorasmith.training.optimizers.eight_bit import EightBit
from lorasmith.training.optimizers.paged import ALIGNMENT, LIMIT, Paged, paged_limit
from lorasmith.training.optimizers.placement import BesideParameter
from lorasmith.training.optimizers.state_format import Plain
from lorasmith.training.settings import TrainingSettings

CUDA = torch.device("cuda", 0)
PAGED = sorted(name for name in optimizers if name.startswith("paged_"))


class HostMemory:
    """Memory that counts what is asked of it."""

    def __init__(self, device):
        self.device = device
        self.pieces: list[torch.Tensor] = []
        self.brought: list[tuple[int, int]] = []

    def allocate(self, size):
        # whatever was there before
        self.pieces.append(torch.full((size,), 255, dtype=torch.uint8))
        return self.pieces[-1]

    def prefetch(self, pointer, size):
        self.brought.append((pointer, size))


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def optimizer_with(placement, state_format, dtype=torch.float32, count=2):
    params = {f"w{index}": nn.Parameter(seeded(70, 61, seed=index).to(dtype)) for index in range(count)}
    return Optimizer(params, AdamW(), state_format, placement, 0.1)


def stepped(optimizer, count):
    for step in range(count):
        for index, parameter in enumerate(optimizer.parameters.values()):
            parameter.grad = seeded(70, 61, seed=10 * step + index).to(parameter.dtype)
        optimizer.step(1e-2)
    return optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("state_format", [Plain, EightBit])
def test_where_state_lies_changes_no_bit(state_format, dtype):
    beside = stepped(optimizer_with(BesideParameter(), state_format(), dtype), 3)
    paged = stepped(optimizer_with(Paged(HostMemory), state_format(), dtype), 3)
    assert all(torch.equal(paged.parameters[name], own) for name, own in beside.parameters.items())
    kept = paged.state_tensors()
    assert all(torch.equal(kept[key], tensor) for key, tensor in beside.state_tensors().items())
    resumed = optimizer_with(Paged(HostMemory), state_format(), dtype)
    resumed.load_state(paged.steps, kept)
    assert all(torch.equal(kept[key], tensor) for key, tensor in resumed.state_tensors().items())


def test_all_that_is_kept_lies_in_what_was_allocated_a_piece_a_slot():
    placement = Paged(HostMemory)
    optimizer = stepped(optimizer_with(placement, EightBit(), torch.bfloat16), 1)
    memory = placement._memory
    # two moments and a remainder of each parameter
    assert len(memory.pieces) == 6
    ranges = [(piece.data_ptr(), piece.data_ptr() + piece.numel()) for piece in memory.pieces]
    for key, tensor in optimizer.state_tensors().items():
        if not key.startswith("steps"):
            assert sum(start <= tensor.data_ptr() < end for start, end in ranges) == 1, key
            assert (tensor.data_ptr() - ranges[0][0]) % 4 == 0
    assert placement.size == sum(piece.numel() for piece in memory.pieces)
    assert all(piece.numel() % ALIGNMENT == 0 for piece in memory.pieces)


def test_each_piece_is_brought_in_once_a_step_before_the_update_that_needs_it():
    placement = Paged(HostMemory)
    optimizer = stepped(optimizer_with(placement, EightBit(), count=3), 1)
    memory = placement._memory
    memory.brought.clear()
    order = []
    original = optimizer._update_
    optimizer._update_ = lambda *given: (order.append(len(memory.brought)), original(*given))
    stepped(optimizer, 1)
    assert sorted(memory.brought) == sorted((piece.data_ptr(), piece.numel()) for piece in memory.pieces)
    # a parameter has two pieces; those of the next one are asked for before its own update runs
    assert order == [4, 6, 6]


@pytest.mark.parametrize(
    ("said", "limit"),
    [("8GB", 8 * 10**9), ("1.5 GiB", 3 * 2**29), ("512mib", 2**29), ("0", 0), ("4096", 4096), ("", None), ("  ", None)],
)
def test_the_limit_is_read_as_it_is_written(said, limit, monkeypatch):
    monkeypatch.setenv(LIMIT, said)
    assert paged_limit() == limit


@pytest.mark.parametrize("said", ["a lot", "-1", "8 bananas", "GB"])
def test_a_limit_that_is_no_size_is_refused(said, monkeypatch):
    monkeypatch.setenv(LIMIT, said)
    with pytest.raises(RecipeError, match=f"{LIMIT}={said} is no size; write"):
        paged_limit()


@pytest.mark.parametrize("name", PAGED)
def test_state_beyond_the_limit_is_refused_by_shapes_alone_and_the_message_names_limit_need_and_fix(name, monkeypatch):
    monkeypatch.setenv(LIMIT, "1MB")
    settings = TrainingSettings(optimizer=name)
    shapes = {"w": torch.empty(8192, 64, device="meta", dtype=torch.bfloat16)}
    need = optimizer_memory(settings, CUDA).state(shapes["w"])
    with pytest.raises(
        RecipeError, match=rf"{need:,} bytes of paged memory, and {LIMIT}=1MB allows 1,000,000; .*lower"
    ):
        require_placement(settings, shapes, CUDA)
    monkeypatch.setenv(LIMIT, str(need))
    require_placement(settings, shapes, CUDA)


def test_the_limit_holds_while_state_is_made_too(monkeypatch):
    monkeypatch.setenv(LIMIT, "60000")
    optimizer = optimizer_with(Paged(HostMemory), Plain())
    with pytest.raises(RecipeError, match=f"{LIMIT}=60000 allows 60,000"):
        stepped(optimizer, 1)


@pytest.mark.parametrize("name", PAGED)
@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_a_device_without_unified_memory_is_refused_before_any_parameter_is_known(name, device):
    settings = TrainingSettings(optimizer=name)
    with pytest.raises(DeviceError, match=f"device={device} does not have; take training.optimizer: adamw or"):
        require_placement(settings, {}, torch.device(device))
    with pytest.raises(DeviceError, match="device=cpu"):
        build({"w": nn.Parameter(torch.ones(4, 4))}, settings)


def test_the_names_stand_for_choices_that_are_made_apart():
    assert PAGED == ["paged_adamw", "paged_adamw8bit"]
    for name in PAGED:
        plain = optimizers[name.removeprefix("paged_")]
        assert optimizers[name].state_format is plain.state_format
        assert optimizer_memory(TrainingSettings(optimizer=name), CUDA).pages
        assert not optimizer_memory(TrainingSettings(optimizer=name.removeprefix("paged_")), CUDA).pages


@pytest.mark.parametrize(("name", "bytes_each"), [("adamw", 8), ("adamw8bit", 2 + 8 / 256)])
def test_the_memory_plan_is_told_what_is_kept_of_an_element(name, bytes_each):
    memory = optimizer_memory(TrainingSettings(optimizer=name), CUDA)
    assert memory.state(torch.empty(64, 128, device="meta")) == 64 * 128 * bytes_each
    # in 16 bits an f32 copy too, or what bf16 leaves of one
    for dtype, copy in ((torch.bfloat16, 2), (torch.float16, 4)):
        assert memory.state(torch.empty(64, 128, device="meta", dtype=dtype)) == 64 * 128 * (bytes_each + copy)
    # small ones stay in f32
    assert memory.state(torch.empty(8, 8, device="meta")) == 64 * 8


def test_a_recipe_is_refused_before_its_model_is_looked_for(tmp_path):
    recipe = build_recipe(
        {
            "model": str(tmp_path / "nowhere"),
            "data": {"train": "nowhere.jsonl"},
            "method": {"name": "lora"},
            "training": {"optimizer": "paged_adamw8bit"},
            "output": str(tmp_path / "run"),
            "device": "cpu",
        },
        "a test",
    )
    with pytest.raises(DeviceError, match="device=cpu does not have"):
        prepare(recipe)
