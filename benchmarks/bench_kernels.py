"""Our CPU kernels beside bitsandbytes', in one process: python benchmarks/bench_kernels.py [--shapes 4096x4096 ...].

Batches of ours and theirs alternate (alternating.py). GB/s is the traffic that the operation cannot avoid, read and
written, and its share is of a plain copy measured in the same run; weights that fit the last cache can exceed it.
Prints one table and writes benchmarks/results/kernels.json, or kernels_avx2.json and the like without AVX-512.
"""

import argparse
import ctypes
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import bitsandbytes
import bitsandbytes.functional as theirs
import torch
from alternating import alternate, can_reject
from bitsandbytes.cextension import lib
from quiet import machine
from torch.nn import functional as F

from lorasmith import ops
from lorasmith.atomic import write_text
from lorasmith.formats import dynamic_map, formats
from lorasmith.ops.native import level

FOLDER = Path(__file__).parent / "results"
SHAPES = ("4096x4096", "5632x2048")
BLOCKSIZE = 64


def result_file() -> Path:
    """Where the figures of this processor's instruction set are kept: AVX-512's do not give way to another's."""
    return FOLDER / ("kernels.json" if level() == "avx512" else f"kernels_{level()}.json")


@dataclass(frozen=True)
class Case:
    """One operation both ways. bytes: read and written by ours."""

    name: str
    ours: Callable[[], object]
    peer: str
    theirs: Callable[[], object]
    bytes: int | None = None


@dataclass(frozen=True)
class Row:
    """A line of the table; times are medians over the accepted batches, in ms."""

    name: str
    shape: str
    peer: str
    ours_ms: float
    peer_ms: float
    ratio: float
    gb_per_s: float | None
    share_of_copy: float | None
    accepted_batches: int
    rejected_batches: int


def quantizing(shape: tuple[int, int]) -> list[Case]:
    weight = torch.randn(shape) * 0.02
    codebook = formats["nf4"].codebook("cpu")

    def nested(x: torch.Tensor) -> None:
        ops.double_quantize(ops.quantize_blockwise(x, codebook, BLOCKSIZE)[1])

    cases = []
    for x in (weight, weight.bfloat16()):
        dtype = str(x.dtype).removeprefix("torch.")
        traffic = x.numel() * x.element_size() + x.numel() // 2 + x.numel() // BLOCKSIZE * 4
        cases.append(
            Case(
                f"quantize {dtype} to nf4",
                lambda x=x: ops.quantize_blockwise(x, codebook, BLOCKSIZE),
                "quantize_4bit",
                lambda x=x: theirs.quantize_4bit(x, blocksize=BLOCKSIZE, quant_type="nf4"),
                traffic,
            )
        )
    cases.append(
        Case(
            "quantize float32 to nf4, nested scales",
            lambda: nested(weight),
            "quantize_4bit",
            lambda: theirs.quantize_4bit(weight, blocksize=BLOCKSIZE, quant_type="nf4", compress_statistics=True),
        )
    )
    return cases


@dataclass(frozen=True)
class Stored:
    """One weight in both libraries' hands; their packed bytes and scales are ours."""

    packed: torch.Tensor
    scales: torch.Tensor
    codes: torch.Tensor
    nested: ops.Nested
    codebook: torch.Tensor
    shape: tuple[int, int]
    state: theirs.QuantState

    @classmethod
    def random(cls, shape: tuple[int, int]) -> "Stored":
        codebook = formats["nf4"].codebook("cpu")
        weight = torch.randn(shape) * 0.02
        packed, scales = ops.quantize_blockwise(weight, codebook, BLOCKSIZE)
        codes, nested_scales, offset = ops.double_quantize(scales)
        _, state = theirs.quantize_4bit(
            weight.bfloat16(), blocksize=BLOCKSIZE, quant_type="nf4", compress_statistics=True
        )
        nested = ops.Nested(nested_scales, offset, dynamic_map())
        return cls(packed, scales, codes, nested, codebook, shape, state)

    def dequantize(self, out: torch.Tensor, nested: bool) -> None:
        scales = self.codes if nested else self.scales
        ops.dequantize_blockwise(
            self.packed,
            scales,
            self.codebook,
            BLOCKSIZE,
            self.shape,
            out.dtype,
            nested=self.nested if nested else None,
            out=out,
        )

    def their_kernel(self, out: torch.Tensor) -> None:
        """Their C function itself, into a buffer that is reused, without nested scales (it has none)."""
        suffix = {torch.float32: "fp32", torch.bfloat16: "bf16"}[out.dtype]
        function = getattr(lib, f"cdequantize_blockwise_cpu_nf4_{suffix}")
        pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (self.packed, self.scales, out))
        function(*pointers, *(ctypes.c_longlong(n) for n in (BLOCKSIZE, *self.shape)))


def dequantizing(stored: Stored) -> list[Case]:
    cases = []
    for dtype, nested in ((torch.bfloat16, False), (torch.bfloat16, True), (torch.float32, False)):
        out = torch.empty(stored.shape, dtype=dtype)
        scale_bytes = stored.codes.numel() if nested else stored.scales.numel() * 4
        cases.append(
            Case(
                f"dequantize nf4 to {str(dtype).removeprefix('torch.')}{', nested scales' if nested else ''}",
                lambda out=out, nested=nested: stored.dequantize(out, nested),
                "its C kernel, plain scales",
                lambda out=out: stored.their_kernel(out),
                stored.packed.numel() + scale_bytes + out.numel() * out.element_size(),
            )
        )
    out = torch.empty(stored.shape, dtype=torch.bfloat16)
    cases.append(
        Case(
            "dequantize nf4 to bfloat16, nested scales",
            lambda: stored.dequantize(out, nested=True),
            "dequantize_4bit",
            lambda: theirs.dequantize_4bit(stored.packed.view(-1, 1), stored.state),
        )
    )
    return cases


def linear(stored: Stored) -> list[Case]:
    dense = torch.empty(stored.shape, dtype=torch.bfloat16)
    stored.dequantize(dense, nested=True)
    packed = stored.packed.view(-1, 1)
    cases = []
    for rows in (1, 4, 16, 1024):
        x = torch.randn(rows, stored.shape[1]).bfloat16()

        def ours(x: torch.Tensor = x) -> torch.Tensor:
            return ops.blockwise_linear(
                x, stored.packed, stored.codes, stored.codebook, BLOCKSIZE, stored.shape, None, nested=stored.nested
            )

        name = f"linear forward bfloat16, {rows} rows"
        # with more rows arithmetic is what bounds it
        traffic = stored.packed.numel() + stored.codes.numel() if rows <= 16 else None
        cases.append(Case(name, ours, "dense layer", lambda x=x: F.linear(x, dense), traffic))
        theirs_too = lambda x=x: bitsandbytes.matmul_4bit(x, packed.t(), stored.state)  # noqa: E731
        cases.append(Case(name, ours, "matmul_4bit", theirs_too, traffic))
    return cases


def copy_bandwidth(batches: int, guarded: bool) -> float:
    """GB/s of copying 256 MB into a buffer that is reused, reads and writes counted."""
    source = torch.ones(1 << 26)
    target = torch.empty_like(source)
    found = alternate({"copy": lambda: target.copy_(source)}, batches, guarded)
    return 2 * source.numel() * 4 / found["copy"].median / 1e9


def measure(case: Case, shape: str, copy_gb_per_s: float, batches: int, guarded: bool) -> Row:
    found = alternate({"ours": case.ours, "peer": case.theirs}, batches, guarded)
    ours, peer = found["ours"].median, found["peer"].median
    rate = None if case.bytes is None else case.bytes / ours / 1e9
    share = None if rate is None else rate / copy_gb_per_s
    counts = [sum(number) for number in zip(*((len(one.times), one.rejected) for one in found.values()), strict=True)]
    return Row(case.name, shape, case.peer, ours * 1e3, peer * 1e3, peer / ours, rate, share, *counts)


def line(row: Row) -> str:
    rate = "" if row.gb_per_s is None else f"{row.gb_per_s:6.1f} {row.share_of_copy:6.0%}"
    times = f"{row.ours_ms:9.3f} {row.peer_ms:10.3f} {row.ratio:8.2f}"
    return f"{row.shape:<10} {row.name:<42} {row.peer:<27} {times} {rate:>13} {row.rejected_batches:>8}"


def about_machine() -> dict[str, object]:
    kernels = sorted({status.why for status in ops.kernel_status() if status.op == "quantize_blockwise"})
    return {**machine(), "bitsandbytes": bitsandbytes.__version__, "kernels": kernels}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="*", default=SHAPES, help="of the matrix, ROWSxCOLUMNS")
    parser.add_argument("--batches", type=int, default=9, help="accepted batches of each")
    parser.add_argument("--accept-noise", action="store_true", help="reject nothing: for development, not for figures")
    parser.add_argument("--out", type=Path, default=result_file(), help="by default one file an instruction set")
    arguments = parser.parse_args()

    guarded = can_reject() and not arguments.accept_noise
    copy_gb_per_s = copy_bandwidth(arguments.batches, guarded)
    about = {**about_machine(), "guarded": guarded, "copy_gb_per_s": copy_gb_per_s}
    for key, value in about.items():
        print(f"{key}: {value}")
    heads = f"{'ours ms':>9} {'theirs ms':>10} {'ratio':>8} {'GB/s  of copy':>13} {'rejected':>8}"
    print(f"\n{'shape':<10} {'ours':<42} {'beside':<27} {heads}")
    rows = []
    for text in arguments.shapes:
        height, width = map(int, text.split("x"))
        stored = Stored.random((height, width))
        for case in [*quantizing((height, width)), *dequantizing(stored), *linear(stored)]:
            rows.append(measure(case, text, copy_gb_per_s, arguments.batches, guarded))
            print(line(rows[-1]), flush=True)
    arguments.out.parent.mkdir(exist_ok=True)
    write_text(arguments.out, json.dumps({**about, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
