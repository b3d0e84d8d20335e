"""Cross-entropy of rows of logits: every instruction set against torch in f64, with the gradient in place."""

import pytest
import torch
import torch.nn.functional as F

from lorasmith import ops
from lorasmith.errors import DataError, FormatError
from lorasmith.ops import Objective, Shaping

SIZES = [(1, 1), (1, 7), (3, 8), (5, 131), (4, 1031)]
UNITS = {torch.float32: 2**-19, torch.bfloat16: 2**-7}


def seeded(*shape, spread=4.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * spread


def formula(logits, labels, weights, shaping, objective):
    z = logits * shaping.scale
    z = z if shaping.softcap is None else shaping.softcap * torch.tanh(z / shaping.softcap)
    losses = F.cross_entropy(z, labels, label_smoothing=objective.label_smoothing, reduction="none")
    losses = losses + objective.z_loss * z.logsumexp(1).square()
    return losses if weights is None else losses * weights


@pytest.mark.parametrize("rows, columns", SIZES)
@pytest.mark.parametrize("dtype", list(UNITS))
@pytest.mark.parametrize("shaping", [Shaping(), Shaping(5.0, 0.5), Shaping(None, -2.0)])
@pytest.mark.parametrize("objective", [Objective(), Objective(0.2, 1e-2)])
@pytest.mark.parametrize("weighted", [False, True])
def test_losses_and_gradients_are_those_of_the_formula(
    native_kernels, rows, columns, dtype, shaping, objective, weighted
):
    logits = seeded(rows, columns).to(dtype)
    labels = torch.arange(rows) * 7 % columns
    weights = torch.rand(rows, generator=torch.Generator().manual_seed(3)) if weighted else None
    wide = logits.double().requires_grad_()
    expected = formula(wide, labels, weights, shaping, objective)
    (wanted,) = torch.autograd.grad(expected.sum(), wide)
    losses = ops.token_losses_(logits, labels, weights, shaping=shaping, objective=objective, gradient=True)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=2**-19, atol=2**-19)
    torch.testing.assert_close(logits.double(), wanted, rtol=UNITS[dtype], atol=2**-20)


def test_without_a_gradient_the_losses_are_the_same(native_kernels):
    logits, labels = seeded(6, 77), torch.arange(6)
    alone = ops.token_losses_(logits.clone(), labels, gradient=False)
    assert torch.equal(alone, ops.token_losses_(logits.clone(), labels, gradient=True))


def test_large_logits_neither_overflow_nor_vanish(native_kernels):
    logits = seeded(4, 100, spread=1.0) + torch.tensor([1e4, -1e4, 1e6, 0.0])[:, None]
    logits[3, 5] = -torch.inf
    expected = F.cross_entropy(logits.double(), torch.arange(4), reduction="none")
    losses = ops.token_losses_(logits, torch.arange(4), gradient=True)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=1e-6)
    assert logits.isfinite().all()
    assert logits[3, 5] == pytest.approx(0.0, abs=1e-30)


def test_a_row_without_a_number_says_so_and_harms_no_other(native_kernels):
    logits = seeded(3, 40)
    logits[1, 9] = torch.nan
    losses = ops.token_losses_(logits, torch.zeros(3, dtype=torch.long), gradient=True)
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
def test_a_wide_cap_is_as_exact_as_a_narrow_one(native_kernels, softcap):
    logits, labels = seeded(4, 257), torch.arange(4)
    wide = logits.double()
    expected = F.cross_entropy(softcap * torch.tanh(wide / softcap), labels, reduction="none")
    losses = ops.token_losses(logits, labels, shaping=Shaping(softcap))
    torch.testing.assert_close(losses.double(), expected, rtol=2**-19, atol=2**-19)


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
