"""Cross-entropy of rows of logits: every instruction set and Triton against torch in f64, the gradient in place."""

import pytest
import torch
import torch.nn.functional as F

from gpu_kernels import triton_kernels
from lorasmith import ops
from lorasmith.errors import DataError, FormatError
from lorasmith.ops import Objective, Shaping
from lorasmith.ops.token_loss.schema import PLAIN

UNSHAPED = Shaping()
TYPES = [torch.float32, torch.bfloat16]
SIZES = [(1, 1), (1, 7), (3, 8), (5, 131), (4, 1031)]
UNITS = {torch.float32: 2**-19, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def seeded(*shape, spread=4.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * spread


def by_triton(logits, labels, weights=None, *, shaping=UNSHAPED, objective=PLAIN, gradient):
    """As ops.token_losses_."""
    asked = (shaping.softcap, shaping.scale, objective.label_smoothing, objective.z_loss, gradient)
    return triton_kernels("token_loss").token_loss_(logits, labels, weights, *asked)


@pytest.fixture
def losses_of_(implementation):
    """ops.token_losses_ by each instruction set, and by Triton."""
    return by_triton if implementation == "triton" else ops.token_losses_


def formula(logits, labels, weights, shaping, objective):
    z = logits * shaping.scale
    z = z if shaping.softcap is None else shaping.softcap * torch.tanh(z / shaping.softcap)
    losses = F.cross_entropy(z, labels, label_smoothing=objective.label_smoothing, reduction="none")
    losses = losses + objective.z_loss * z.logsumexp(1).square()
    return losses if weights is None else losses * weights


@pytest.mark.parametrize("rows, columns", SIZES)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shaping", [Shaping(), Shaping(5.0, 0.5), Shaping(None, -2.0)])
@pytest.mark.parametrize("objective", [Objective(), Objective(0.2, 1e-2)])
@pytest.mark.parametrize("weighted", [False, True])
def test_losses_and_gradients_are_those_of_the_formula(
    native_kernels, rows, columns, dtype, shaping, objective, weighted
):
    check_formula(ops.token_losses_, (rows, columns), dtype, shaping, objective, weighted=weighted)


@pytest.mark.parametrize("shape", [(1, 1), (3, 8), (2, 131)])
@pytest.mark.parametrize("dtype", [*TYPES, torch.float16])
@pytest.mark.parametrize(
    "shaping, objective, weighted",
    [
        (Shaping(), Objective(), False),
        (Shaping(5.0, 0.5), Objective(0.2, 1e-2), True),
        (Shaping(None, -2.0), Objective(0.2), False),
    ],
)
def test_on_a_gpu_they_are_those_of_the_formula(shape, dtype, shaping, objective, weighted):
    check_formula(by_triton, shape, dtype, shaping, objective, weighted=weighted)


def check_formula(losses_of_, shape, dtype, shaping, objective, *, weighted):
    logits, labels = seeded(*shape).to(dtype), torch.arange(shape[0]) * 7 % shape[1]
    weights = torch.rand(shape[0], generator=torch.Generator().manual_seed(3)) if weighted else None
    wide = logits.double().requires_grad_()
    expected = formula(wide, labels, weights, shaping, objective)
    (wanted,) = torch.autograd.grad(expected.sum(), wide)
    losses = losses_of_(logits, labels, weights, shaping=shaping, objective=objective, gradient=True)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=2**-19, atol=2**-19)
    torch.testing.assert_close(logits.double(), wanted, rtol=UNITS[dtype], atol=2**-20)


def test_without_a_gradient_the_losses_are_the_same(losses_of_):
    logits, labels = seeded(3, 77), torch.arange(3)
    alone = losses_of_(logits.clone(), labels, gradient=False)
    assert torch.equal(alone, losses_of_(logits.clone(), labels, gradient=True))


def test_large_logits_neither_overflow_nor_vanish(losses_of_):
    logits = seeded(4, 100, spread=1.0) + torch.tensor([1e4, -1e4, 1e6, 0.0])[:, None]
    logits[3, 5] = -torch.inf
    expected = F.cross_entropy(logits.double(), torch.arange(4), reduction="none")
    losses = losses_of_(logits, torch.arange(4), gradient=True)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=1e-6)
    assert logits.isfinite().all()
    assert logits[3, 5] == pytest.approx(0.0, abs=1e-30)


def test_a_row_without_a_number_says_so_and_harms_no_other(losses_of_):
    logits = seeded(3, 40)
    logits[1, 9] = torch.nan
    losses = losses_of_(logits, torch.zeros(3, dtype=torch.long), gradient=True)
    assert losses[1].isnan()
    assert losses[[0, 2]].isfinite().all()
    assert logits[[0, 2]].isfinite().all()


def test_logits_of_an_ordinary_call_stay_as_they_are(native_kernels):
    logits = seeded(5, 33).requires_grad_()
    before = logits.detach().clone()
    losses = ops.token_losses(logits, torch.arange(5))
    weights = torch.arange(5.0)
    (gradient,) = torch.autograd.grad((losses * weights).sum(), logits)
    assert torch.equal(logits, before)
    other = before.clone().requires_grad_()
    (wanted,) = torch.autograd.grad((F.cross_entropy(other, torch.arange(5), reduction="none") * weights).sum(), other)
    torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-6)


def test_a_single_column_may_have_any_stride(native_kernels):
    assert ops.token_losses(seeded(1, 6).T, torch.zeros(6, dtype=torch.long)).eq(0).all()


def test_one_position_of_a_sequence_of_logits(native_kernels):
    logits = seeded(1, 4, 7)[:, -1]
    assert logits.stride(0) != logits.shape[1]
    labels = torch.tensor([3])
    torch.testing.assert_close(ops.token_losses(logits, labels), F.cross_entropy(logits, labels, reduction="none"))


@pytest.mark.parametrize("softcap", [30.0, 1e3, 1e6])
def test_a_wide_cap_is_as_exact_as_a_narrow_one(losses_of_, softcap):
    logits, labels = seeded(4, 257), torch.arange(4)
    wide = logits.double()
    expected = F.cross_entropy(softcap * torch.tanh(wide / softcap), labels, reduction="none")
    losses = losses_of_(logits, labels, shaping=Shaping(softcap), gradient=False)
    torch.testing.assert_close(losses.double(), expected, rtol=2**-19, atol=2**-19)


@pytest.mark.parametrize("objective", [Objective(), Objective(0.2, 1e-2)])
def test_on_a_gpu_rows_of_several_tiles_and_any_stride_keep_what_lies_between_them(objective):
    spread, labels = torch.full((2, 70016), 7.0), torch.tensor([69998, 3])
    spread[:, :69999] = seeded(2, 69999)
    logits = spread[:, :69999]
    wide = logits.double().requires_grad_()
    expected = formula(wide, labels, None, Shaping(), objective)
    (wanted,) = torch.autograd.grad(expected.sum(), wide)
    losses = by_triton(logits, labels, objective=objective, gradient=True)
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=2**-19, atol=2**-19)
    torch.testing.assert_close(logits.double(), wanted, rtol=2**-19, atol=2**-20)
    assert spread[:, 69999:].eq(7).all()


@pytest.mark.parametrize("label", [-100, 40])
def test_on_a_gpu_a_label_that_is_no_column_makes_its_loss_nan_and_no_other(label):
    losses = by_triton(seeded(3, 40), torch.tensor([0, label, 39]), gradient=True)
    assert losses.isnan().tolist() == [False, True, False]


def test_what_does_not_fit_is_refused():
    logits, labels = seeded(2, 8), torch.tensor([0, 7])
    with pytest.raises(DataError, match="label 8 is not one of the 8 classes"):
        ops.token_losses(logits, labels + 1)
    with pytest.raises(FormatError, match="int64"):
        ops.token_losses(logits, labels.int())
    with pytest.raises(FormatError, match="weights"):
        ops.token_losses(logits, labels, torch.ones(1))
    with pytest.raises(FormatError, match="softcap=0"):
        Shaping(0.0)
    with pytest.raises(FormatError, match="would be lost"):
        ops.token_losses_(logits.requires_grad_(), labels, gradient=True)
