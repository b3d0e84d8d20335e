"""Tensors are read from safetensors files without mapping them, and damaged files are refused by name."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lorasmith.errors import ModelError
from lorasmith.models.tensor_file import DTYPES, read_header


@pytest.fixture
def path(tmp_path):
    tensors = {
        "a": torch.arange(12, dtype=torch.float32).reshape(3, 4),
        "b": torch.randn(5).bfloat16(),
        "empty": torch.zeros(0, 4),
        "codes": torch.arange(7, dtype=torch.uint8),
        "number": torch.tensor(3, dtype=torch.int64),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    return tmp_path / "x.safetensors", tensors


def test_every_tensor_is_read_as_safetensors_wrote_it(path):
    file, tensors = path
    stored = read_header(file)
    assert set(stored) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(stored[name].read(), tensor)
        assert stored[name].read().dtype == tensor.dtype


@pytest.mark.parametrize("code", [code for code, dtype in DTYPES.items() if dtype.itemsize > 0])
def test_every_type_of_the_format_is_read(code, tmp_path):
    value = torch.zeros(4, dtype=torch.uint8).view(torch.uint8).repeat(DTYPES[code].itemsize).view(DTYPES[code])
    save_file({"t": value}, tmp_path / "t.safetensors")
    stored = read_header(tmp_path / "t.safetensors")["t"]
    assert stored.get_dtype() == code
    assert stored.read().dtype == DTYPES[code]
    assert stored.get_shape() == [4]


def test_a_tensor_can_be_seen_as_its_bytes(path):
    file, tensors = path
    assert torch.equal(read_header(file)["b"].as_bytes().read(), tensors["b"].view(torch.uint8).reshape(-1, 1))


def test_memory_does_not_grow_by_the_file_while_its_tensors_are_read(tmp_path):
    # 64 MiB in 16 tensors: read one by one, no more than a few stay
    save_file({f"t{i}": torch.zeros(2**20) for i in range(16)}, tmp_path / "big.safetensors")
    stored = read_header(tmp_path / "big.safetensors")
    mapped_before = _file_pages()
    for tensor in stored.values():
        tensor.read()
    assert _file_pages() - mapped_before < 4 * 2**20


def _file_pages():
    with Path("/proc/self/status").open(encoding="ascii") as status:
        line = next(line for line in status if line.startswith("RssFile"))
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_value_that_is_no_number_is_refused_with_the_tensors_name(value, dtype, tmp_path):
    tensor = torch.ones(300, dtype=dtype)
    tensor[299] = value
    save_file({"model.norm.weight": tensor}, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match=r"x\.safetensors: tensor model.norm.weight holds NaN or Inf"):
        read_header(tmp_path / "x.safetensors")["model.norm.weight"].read()


def test_a_truncated_file_is_refused_before_anything_is_read(path):
    file, _ = path
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"x.safetensors is truncated: .* bytes instead of"):
        read_header(file)


def test_a_file_longer_than_its_header_says_is_refused(path):
    file, _ = path
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(ModelError, match="longer than its header says"):
        read_header(file)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0\0", b"<html>not found</html>", struct.pack("<Q", 2**60), struct.pack("<Q", 4) + b"nope"],
    ids=["empty", "short", "a web page", "impossible length", "no JSON"],
)
def test_a_file_that_is_no_safetensors_is_refused_by_name(content, tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=str(file)):
        read_header(file)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
        {"dtype": "F999", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2]},
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
        [],
    ],
    ids=["size", "type", "no offsets", "negative", "no object"],
)
def test_a_header_that_contradicts_itself_is_refused(entry, tmp_path):
    header = json.dumps({"t": entry}).encode()
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(ModelError, match="damaged header"):
        read_header(file)


def test_a_file_that_shrinks_after_its_header_was_read_is_refused(path):
    file, _ = path
    stored = read_header(file)
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(ModelError, match="ended inside tensor"):
        [tensor.read() for tensor in stored.values()]
