"""The fused head and loss agree with torch's own cross_entropy on the full logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from lorasmith.errors import DataError, FormatError
from lorasmith.ops.cross_entropy import (
    IGNORED,
    chunked,
    default_chunk,
    head_cross_entropy,
    head_token_losses,
    linear_cross_entropy,
    linear_token_losses,
)
from lorasmith.ops.token_loss.schema import Objective, Shaping

FORMS = [(None, 1.0), (None, 0.25), (3.0, 1.0), (3.0, 2.0)]


def problem(dtype: torch.dtype = torch.float32, rows: int = 23, width: int = 8, vocabulary: int = 17):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(rows, width, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=dtype, requires_grad=True)
    bias = torch.randn(vocabulary, generator=generator, dtype=dtype, requires_grad=True)
    labels = torch.randint(0, vocabulary, (rows,), generator=generator)
    labels[::3] = IGNORED
    return hidden, weight, bias, labels


def plain(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, softcap: float | None, scale: float) -> Tensor:
    logits = F.linear(hidden, weight, bias) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")


@pytest.mark.parametrize(("softcap", "scale"), FORMS)
@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_value_and_gradients_equal_torch_in_f32(softcap, scale, chunk):
    hidden, weight, bias, labels = problem()
    expected = plain(hidden, weight, bias, labels, softcap, scale)
    wanted = torch.autograd.grad(expected, (hidden, weight, bias))
    nll, count = linear_cross_entropy(hidden, weight, labels, head_bias=bias, softcap=softcap, scale=scale, chunk=chunk)
    assert count == int((labels != IGNORED).sum())
    # f32, sums of 15 terms of order 10 in another order: a few units in the last place
    assert_close(nll, expected, rtol=1e-6, atol=0)
    for got, want in zip(torch.autograd.grad(nll, (hidden, weight, bias)), wanted, strict=True):
        assert_close(got, want, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(("softcap", "scale"), FORMS)
def test_gradients_are_the_derivative_of_the_value(softcap, scale):
    hidden, weight, bias, labels = problem(torch.float64, rows=5, width=3, vocabulary=4)

    def value(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, labels, head_bias=bias, softcap=softcap, scale=scale, chunk=2)[0]

    assert torch.autograd.gradcheck(value, (hidden, weight, bias))


@pytest.mark.parametrize(("softcap", "scale"), FORMS)
def test_any_callable_head_gives_the_same_value_and_gradients(softcap, scale):
    hidden, weight, bias, labels = problem()
    head = nn.Linear(8, 17)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    expected = plain(hidden, weight, bias, labels, softcap, scale)
    wanted = torch.autograd.grad(expected, (hidden, weight, bias))
    nll, _ = head_cross_entropy(hidden, head, labels, vocabulary=17, softcap=softcap, scale=scale, chunk=4)
    assert_close(nll, expected, rtol=1e-6, atol=0)
    for got, want in zip(torch.autograd.grad(nll, (hidden, head.weight, head.bias)), wanted, strict=True):
        assert_close(got, want, rtol=1e-5, atol=2e-6)


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, bias, labels = problem()
    weight, bias = weight.detach(), bias.detach()
    nll, _ = linear_cross_entropy(hidden, weight, labels, head_bias=bias)
    nll.backward()
    assert weight.grad is None
    assert bias.grad is None
    assert hidden.grad is not None


def test_rows_without_a_label_get_a_gradient_of_exactly_zero():
    hidden, weight, _, labels = problem()
    linear_cross_entropy(hidden, weight, labels)[0].backward()
    assert (hidden.grad[labels == IGNORED] == 0).all()
    assert (hidden.grad[labels != IGNORED] != 0).any(1).all()


def test_rows_without_a_label_do_not_touch_the_value_even_when_they_are_nan():
    hidden, weight, _, labels = problem()
    expected, _ = linear_cross_entropy(hidden, weight, labels)
    poisoned = hidden.detach().clone()
    poisoned[labels == IGNORED] = torch.nan
    assert torch.equal(linear_cross_entropy(poisoned, weight, labels)[0], expected)


def test_the_gradient_is_scaled_by_what_comes_from_above():
    hidden, weight, _, labels = problem()
    (full,) = torch.autograd.grad(linear_cross_entropy(hidden, weight, labels)[0], hidden)
    (half,) = torch.autograd.grad(linear_cross_entropy(hidden, weight, labels)[0] / 2, hidden)
    assert torch.equal(half, full / 2)


def test_batched_hidden_keeps_its_shape_in_the_gradient():
    hidden, weight, _, labels = problem(rows=24)
    batched = hidden.detach().reshape(2, 12, 8).requires_grad_()
    nll, _ = linear_cross_entropy(batched, weight, labels.reshape(2, 12))
    nll.backward()
    assert batched.grad.shape == (2, 12, 8)
    assert_close(nll, linear_cross_entropy(hidden, weight, labels)[0], rtol=0, atol=0)


def test_without_gradients_the_value_is_the_same():
    hidden, weight, bias, labels = problem()
    with_gradient, _ = linear_cross_entropy(hidden, weight, labels, head_bias=bias)
    with torch.no_grad():
        without, _ = linear_cross_entropy(hidden, weight, labels, head_bias=bias)
    assert torch.equal(with_gradient, without)
    assert not without.requires_grad


@pytest.mark.parametrize("autocast", [False, True])
def test_bf16_is_as_near_to_the_truth_as_torchs_own_bf16(autocast):
    hidden, weight, bias, labels = problem(rows=256, width=64, vocabulary=512)
    truth = plain(hidden, weight, bias, labels, None, 1.0)
    low = [t.detach().bfloat16().requires_grad_() for t in (hidden, weight, bias)]
    torch_low = F.cross_entropy(F.linear(*low).float(), labels, reduction="sum")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        nll, _ = linear_cross_entropy(low[0], low[1], labels, head_bias=low[2], chunk=50)
    nll.backward()
    assert nll.dtype == torch.float32
    assert low[0].grad.dtype == low[1].grad.dtype == torch.bfloat16
    # twice torch's own bf16 error, plus one part in 10^5 for the case that torch is right by luck
    assert abs(nll - truth) <= 2 * abs(torch_low - truth) + 1e-5 * truth


def test_no_labels_at_all_give_zero_and_a_zero_gradient():
    hidden, weight, _, labels = problem()
    labels[:] = IGNORED
    for nll, count in (
        linear_cross_entropy(hidden, weight, labels),
        head_cross_entropy(hidden, lambda h: h @ weight.T, labels, vocabulary=17),
    ):
        assert (nll.item(), count) == (0.0, 0)
        (gradient,) = torch.autograd.grad(nll, hidden)
        assert (gradient == 0).all()


class _LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_chunks_are_of_nearly_one_size_and_never_larger_than_asked():
    form = chunked.Form(Shaping(), Objective(), chunk=100)
    sizes = [chunk.stop - chunk.start for chunk in form.chunks(210)]
    assert sizes == [70, 70, 70]
    assert [(chunk.start, chunk.stop) for chunk in form.chunks(101)] == [(0, 51), (51, 101)]
    assert list(form.chunks(0)) == []


def test_a_gpu_has_rows_enough_at_once_to_make_up_for_reading_the_head():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    # 206 products of a row and a weight an H200 makes in bf16 while it reads one weight (989 TFLOP/s, 4.8 TB/s)
    assert all(default_chunk(vocabulary, gpu) > 2 * 206 for vocabulary in (32000, 128256, 262144))
    assert default_chunk(32000, cpu) * 32000 * 4 <= 64 << 20


def test_rows_of_logits_begin_on_whole_vectors_on_a_gpu_and_stand_close_on_a_cpu():
    assert chunked._logits(3, 50257, torch.bfloat16, torch.device("cpu")).is_contiguous()
    logits = chunked._logits(3, 50257, torch.bfloat16, torch.device("meta"))
    assert (logits.shape, logits.stride()) == ((3, 50257), (50272, 1))


def test_no_tensor_is_larger_than_a_chunk_of_logits():
    hidden, weight, _, _ = problem(rows=400, width=8, vocabulary=1000)
    labels = torch.arange(400)
    with _LargestTensor() as seen:
        nll, _ = linear_cross_entropy(hidden, weight.detach(), labels, chunk=16)
        nll.backward()
    assert seen.elements == 16 * 1000


@pytest.mark.parametrize("label", [17, -1])
def test_a_label_outside_the_vocabulary_is_named(label):
    hidden, weight, _, labels = problem()
    labels[1] = label
    with pytest.raises(DataError, match=f"label {label} is outside the vocabulary of 17"):
        linear_cross_entropy(hidden, weight, labels)


def test_shapes_that_do_not_fit_are_named():
    hidden, weight, _, labels = problem()
    with pytest.raises(FormatError, match=r"\(22,\).*\(23, 8\)"):
        linear_cross_entropy(hidden, weight, labels[1:])
    with pytest.raises(FormatError, match=r"\(17, 7\)"):
        linear_cross_entropy(hidden, weight[:, 1:], labels)


OBJECTIVES = [Objective(0.1), Objective(z_loss=1e-2), Objective(0.3, 0.05)]


def dense_objective(logits: Tensor, labels: Tensor, objective: Objective, weights: Tensor | None) -> Tensor:
    kept = labels != IGNORED
    losses = F.cross_entropy(logits[kept], labels[kept], label_smoothing=objective.label_smoothing, reduction="none")
    losses = losses + objective.z_loss * logits[kept].logsumexp(1) ** 2
    return (losses if weights is None else losses * weights[kept]).sum()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("softcap", "scale"), FORMS)
def test_smoothing_z_loss_and_weights_equal_torch_on_the_whole_logits(objective, weighted, softcap, scale):
    hidden, weight, bias, labels = problem()
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(2)) if weighted else None
    logits = F.linear(hidden, weight, bias) * scale
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    expected = dense_objective(logits, labels, objective, weights)
    wanted = torch.autograd.grad(expected, (hidden, weight, bias))
    asked = {"softcap": softcap, "scale": scale, "chunk": 4, "objective": objective, "weights": weights}
    fused, count = linear_cross_entropy(hidden, weight, labels, head_bias=bias, **asked)
    head = lambda x: F.linear(x, weight, bias)  # noqa: E731
    whole, _ = head_cross_entropy(hidden, head, labels, vocabulary=17, **asked)
    assert count == int((labels != IGNORED).sum())
    for loss in (fused, whole):
        # f32 sums in another order
        assert_close(loss, expected, rtol=2e-6, atol=0)
        for got, want in zip(torch.autograd.grad(loss, (hidden, weight, bias)), wanted, strict=True):
            assert_close(got, want, rtol=2e-5, atol=5e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradients_of_an_objective_are_the_derivative_of_its_value(objective):
    hidden, weight, bias, labels = problem(torch.float64, rows=5, width=3, vocabulary=4)
    asked = {"softcap": 3.0, "scale": 2.0, "chunk": 2, "objective": objective, "weights": torch.linspace(0, 2, 5)}

    def value(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, labels, head_bias=bias, **asked)[0]

    assert torch.autograd.gradcheck(value, (hidden, weight, bias))


def test_a_weight_of_nothing_is_no_label_and_one_of_two_is_the_row_twice():
    hidden, weight, _, labels = (tensor.detach() for tensor in problem())
    weights = torch.tensor([0.0, 1.0, 2.0]).repeat(8)[: len(labels)]
    weighed, _ = linear_cross_entropy(hidden, weight, labels, weights=weights)
    kept = torch.cat([torch.full((count,), row) for row, count in enumerate(weights.long().tolist())]).long()
    repeated, _ = linear_cross_entropy(hidden[kept], weight, labels[kept])
    assert_close(weighed, repeated)


def test_evaluation_gives_each_labelled_row_its_loss_in_order():
    hidden, weight, bias, labels = problem()
    asked = {"softcap": 3.0, "scale": 2.0, "chunk": 4}
    logits = 3.0 * torch.tanh(F.linear(hidden, weight, bias) * 2 / 3)
    expected = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")[labels != IGNORED].detach()
    head = lambda x: F.linear(x, weight, bias)  # noqa: E731
    for losses in (
        linear_token_losses(hidden, weight, labels, head_bias=bias, **asked),
        head_token_losses(hidden, head, labels, vocabulary=17, **asked),
    ):
        assert not losses.requires_grad
        assert_close(losses, expected, rtol=2e-6, atol=2e-6)


def test_evaluation_without_labels_gives_nothing():
    hidden, weight, _, labels = problem()
    labels[:] = IGNORED
    assert linear_token_losses(hidden, weight, labels).shape == (0,)
    assert head_token_losses(hidden, lambda x: x @ weight.T, labels, vocabulary=17).shape == (0,)


@pytest.mark.parametrize("rows_of_a_tile", [1, 5, 17, 100])
def test_a_head_in_tiles_is_the_head_widened_whole(monkeypatch, rows_of_a_tile):
    monkeypatch.setattr(chunked, "product_dtype", lambda dtype, device: torch.float32)
    monkeypatch.setattr(chunked, "TILE_ELEMENTS", rows_of_a_tile * 8)
    low = [tensor.detach().bfloat16().requires_grad_() for tensor in problem()[:3]]
    labels = problem()[3]
    wide = [tensor.detach().float().requires_grad_() for tensor in low]
    expected = plain(*wide, labels, 3.0, 2.0)
    nll, _ = linear_cross_entropy(low[0], low[1], labels, head_bias=low[2], softcap=3.0, scale=2.0, chunk=4)
    assert_close(nll, expected, rtol=1e-6, atol=0)
    made = torch.autograd.grad(nll, low)
    for got, want in zip(made, torch.autograd.grad(expected, wide), strict=True):
        assert got.dtype == torch.bfloat16
        # one rounding of sums in another order
        assert_close(got.float(), want, rtol=2**-7, atol=1e-5)


def test_no_wide_copy_of_a_narrow_head_is_made(monkeypatch):
    monkeypatch.setattr(chunked, "product_dtype", lambda dtype, device: torch.float32)
    monkeypatch.setattr(chunked, "TILE_ELEMENTS", 64 * 32)
    hidden = torch.randn(8, 32, dtype=torch.bfloat16, requires_grad=True)
    weight, labels = torch.randn(1024, 32).bfloat16(), torch.arange(8)
    with _LargestTensor() as seen:
        linear_cross_entropy(hidden, weight, labels, chunk=4)[0].backward()
    assert seen.elements < weight.numel() / 2


@pytest.mark.parametrize("values", [{"label_smoothing": 1.0}, {"label_smoothing": -0.1}, {"z_loss": -1.0}])
def test_an_objective_out_of_range_is_refused(values):
    with pytest.raises(FormatError, match=f"{next(iter(values))}=.* must be"):
        Objective(**values)


def test_weights_of_another_shape_are_refused():
    hidden, weight, _, labels = problem()
    with pytest.raises(FormatError, match=r"weights .* do not fit labels"):
        linear_cross_entropy(hidden, weight, labels, weights=torch.ones(3))
