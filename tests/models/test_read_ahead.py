"""What is read ahead is what is read, in whatever order it is asked for.

Pinned buffers and streams need a GPU; threads, pieces and order are the same code here.
"""

import random
import threading
import weakref

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from lorasmith.errors import ModelError
from lorasmith.models import streaming
from lorasmith.models.load import load
from lorasmith.models.read_ahead import ReadAhead, Staging
from lorasmith.models.streaming import by_name, streamed
from lorasmith.models.tensor_file import read_header

CPU = torch.device("cpu")
PIECE = 64


def content():
    generator = torch.Generator().manual_seed(0)
    tensors = {f"layers.{n}.weight": torch.randn(7, 3 + n, generator=generator) for n in range(12)}
    return tensors | {
        "empty": torch.zeros(0, 4),
        "half": torch.randn(33, generator=generator).half(),
        "one": torch.tensor(3),
        "bytes": torch.randint(0, 255, (129,), generator=generator).byte(),
    }


@pytest.fixture
def stored(tmp_path):
    save_file(content(), tmp_path / "model.safetensors")
    header = read_header(tmp_path / "model.safetensors")
    return {name: header[name] for name in sorted(header, key=by_name)}


class Recorded(Staging):
    """Staging that tells what it read, and holds each reading back until it may go on."""

    def __init__(self):
        super().__init__(CPU, PIECE)
        self.names, self.tensors, self.may = [], [], threading.Semaphore(100)

    def read(self, stored):
        self.may.acquire()
        self.names.append(stored.name)
        arriving = super().read(stored)
        self.tensors.append(weakref.ref(arriving._tensor))
        return arriving


def waits_for(condition):
    """Whether condition becomes true within some seconds."""
    pause = threading.Event()
    return any(condition() or pause.wait(0.01) for _ in range(500))


def test_in_order_every_tensor_is_read_once_and_is_bit_equal(stored):
    staging, wanted = Recorded(), content()
    with ReadAhead(list(stored.values()), staging) as ahead:
        for name, each in stored.items():
            assert_close(ahead.take(each), wanted[name], rtol=0, atol=0)
    assert staging.names == list(stored)


@pytest.mark.parametrize("seed", range(4))
def test_in_any_order_every_tensor_is_bit_equal(stored, seed):
    wanted, asked = content(), list(stored.values()) * 2
    random.Random(seed).shuffle(asked)
    with ReadAhead(list(stored.values()), Staging(CPU, PIECE)) as ahead:
        for each in asked:
            assert_close(ahead.take(each), wanted[each.name], rtol=0, atol=0)


def test_the_next_is_read_while_the_last_is_worked_on_and_no_more(stored):
    staging, order = Recorded(), list(stored.values())
    with ReadAhead(order, staging) as ahead:
        ahead.take(order[0])
        assert waits_for(lambda: staging.names == [order[0].name, order[1].name])
        # nobody has asked for the second: the third waits
        threading.Event().wait(0.05)
        assert len(staging.names) == 2


def test_two_tensors_at_most_are_held(stored):
    staging, order = Recorded(), list(stored.values())
    with ReadAhead(order, staging) as ahead:
        for each in order:
            tensor = ahead.take(each)
            assert sum(kept() is not None for kept in staging.tensors) <= 2
            del tensor
    assert all(kept() is None for kept in staging.tensors)


def test_a_name_that_nobody_asks_for_costs_one_reading(stored):
    staging, order = Recorded(), list(stored.values())
    with ReadAhead(order, staging) as ahead:
        for each in order[:3] + order[4:]:
            ahead.take(each)
            assert waits_for(lambda: True)
    # the fourth may have been begun before the fifth was asked for
    assert [name for name in staging.names if name != order[3].name] == [each.name for each in order[:3] + order[4:]]


def test_out_of_order_nothing_is_read_in_vain_but_the_first_guesses(stored):
    staging, order = Recorded(), list(stored.values())
    with ReadAhead(order, staging) as ahead:
        for each in order[::-2]:
            ahead.take(each)
    assert len(staging.names) <= len(order[::-2]) + 1


def test_threads_may_ask_at_once(stored):
    wanted, found = content(), {}

    def ask(names):
        for name in names:
            found[name] = ahead.take(stored[name])

    names = list(stored)
    with ReadAhead(list(stored.values()), Staging(CPU, PIECE)) as ahead:
        threads = [threading.Thread(target=ask, args=[names[start::4]]) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_what_fails_while_it_is_read_ahead_fails_where_it_is_asked_for(stored, tmp_path):
    order = list(stored.values())
    path = tmp_path / "model.safetensors"
    # the last tensor of the file loses its end
    last = max(order, key=lambda each: each.offset + each.nbytes)
    path.write_bytes(path.read_bytes()[:-1])
    with ReadAhead(order, Staging(CPU, PIECE)) as ahead:
        for each in order:
            if each is last:
                with pytest.raises(ModelError, match=f"ended inside tensor {last.name}"):
                    ahead.take(each)
            else:
                ahead.take(each)


def test_nan_is_refused_by_name(tmp_path):
    save_file({"fine": torch.ones(3), "broken": torch.tensor([1.0, float("nan")])}, tmp_path / "m.safetensors")
    tensors = read_header(tmp_path / "m.safetensors")
    with (
        ReadAhead(list(tensors.values()), Staging(CPU)) as ahead,
        pytest.raises(ModelError, match="tensor broken holds NaN or Inf"),
    ):
        ahead.take(tensors["broken"])


def test_an_error_in_the_block_ends_the_thread(stored):
    with pytest.raises(KeyError), ReadAhead(list(stored.values()), Recorded()) as ahead:
        raise KeyError
    assert not ahead._thread.is_alive()


def test_names_are_sorted_as_transformers_does():
    names = ["b.10.x", "b.2.x", "a", "b.2.10", "b.w"]
    assert sorted(names, key=by_name) == ["a", "b.2.10", "b.2.x", "b.10.x", "b.w"]


@pytest.mark.parametrize("one_by_one", [True, False])
def test_what_transformers_reads_stays_where_it_is(stored, monkeypatch, one_by_one):
    monkeypatch.setattr(streaming, "streams", lambda device: True)
    wanted = content()
    with streamed(stored, CPU, one_by_one=one_by_one) as tensors:
        for name, each in tensors.items():
            # as transformers asks: another device is not gone to, another type is
            kept = each[...].to(device="meta", dtype=None)
            assert type(kept) is torch.Tensor
            assert torch.equal(kept, wanted[name])
            assert each[...].to(device="meta", dtype=torch.float64).dtype == torch.float64


def test_elsewhere_tensors_are_read_into_memory(stored):
    with streamed(stored, CPU, one_by_one=True) as tensors:
        assert tensors == stored


@pytest.mark.parametrize("scheme", [None, "nf4", "int8"])
@pytest.mark.parametrize("kind", ["llama", "tied"])
def test_a_model_loaded_on_that_way_is_bit_equal(saved, monkeypatch, kind, scheme):
    folder = saved(kind)
    wanted = load(folder, scheme=scheme, device="cpu").model.state_dict()
    monkeypatch.setattr(streaming, "streams", lambda device: True)
    got = load(folder, scheme=scheme, device="cpu").model.state_dict()
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_a_stored_model_loaded_on_that_way_is_bit_equal(saved, monkeypatch, tmp_path):
    load(saved("llama"), scheme="nf4", device="cpu").model.save_pretrained(tmp_path / "stored")
    wanted = load(tmp_path / "stored", device="cpu").model.state_dict()
    monkeypatch.setattr(streaming, "streams", lambda device: True)
    got = load(tmp_path / "stored", device="cpu").model.state_dict()
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned buffers and streams need a CUDA GPU")
@pytest.mark.parametrize("piece", [64, 1 << 20])
def test_on_a_gpu_every_tensor_arrives_bit_equal(stored, piece):
    wanted, device = content(), torch.device("cuda")
    with ReadAhead(list(stored.values()), Staging(device, piece)) as ahead:
        got = {name: ahead.take(each) for name, each in stored.items()}
    assert all(got[name].is_cuda and torch.equal(got[name].cpu(), wanted[name]) for name in wanted)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned buffers and streams need a CUDA GPU")
@pytest.mark.parametrize("scheme", [None, "nf4", "int8"])
def test_on_a_gpu_a_model_is_loaded_with_the_bytes_it_has_on_a_cpu(saved, scheme):
    folder = saved("llama")
    wanted, got = (load(folder, scheme=scheme, device=device).model.state_dict() for device in ("cpu", "cuda"))
    assert all(got[name].is_cuda and torch.equal(got[name].cpu(), wanted[name]) for name in wanted)
