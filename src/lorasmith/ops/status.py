"""Which kernels are active, and why."""

from dataclasses import dataclass
from typing import Literal

import torch

from lorasmith.ops import gpu
from lorasmith.ops.library import NATIVE_KERNELS
from lorasmith.ops.native import absence, extension, kernels, level
from lorasmith.ops.rowwise.cpu import uses_onednn

# Ops that consist of others and so need no kernel of their own.
COMPOSED = {
    "blockwise_linear": "dequantize_blockwise_out, then the device's own matmul",
    "blockwise_linear_backward": "dequantize_blockwise_out, then the device's own matmul",
    "rowwise_linear": "int8_matmul; large features in the device's own matmul",
    "rowwise_linear_backward": "the device's own matmul",
    "updated_blockwise_linear": "blockwise_linear and low_rank_add",
    "updated_blockwise_linear_backward": "blockwise_linear_backward and low_rank_add",
}


@dataclass(frozen=True)
class KernelStatus:
    """One line of `lorasmith env`: what serves an op on a device, and why."""

    op: str
    device: str
    active: Literal["native", "triton", "reference"]
    why: str


def kernel_status() -> list[KernelStatus]:
    """What serves each op on each device type that this machine has, in order of op and device."""
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices.append("cuda")
    if torch.backends.mps.is_available():
        devices.append("mps")
    return [_status(op, device) for op in sorted(NATIVE_KERNELS) for device in devices]


def triton_status() -> str:
    """Which device Triton's kernels serve and its version, or why none is served."""
    absence = gpu.absence()
    return f"{gpu.version()}, serves " + (f"no device: {absence}" if absence else " and ".join(gpu.devices()))


def _status(op: str, device: str) -> KernelStatus:
    if device in NATIVE_KERNELS[op]:
        # where Triton serves a device, nothing else does
        if device in gpu.devices():
            return KernelStatus(op, device, "triton", f"triton {gpu.version()}")
        return KernelStatus(op, device, "native", _why_native(op))
    if op in COMPOSED:
        return KernelStatus(op, device, "reference", f"made of {COMPOSED[op]}")
    if device != "cpu":
        why = gpu.absence() if device == "cuda" else ""
        return KernelStatus(op, device, "reference", f"plain PyTorch: {why or f'there is no {device} kernel yet'}")
    if extension() is None:
        return KernelStatus(op, device, "reference", absence())
    return KernelStatus(op, device, "reference", "plain PyTorch: no kernel needed")


def _why_native(op: str) -> str:
    if op == "int8_matmul" and uses_onednn():
        return "oneDNN int8 through torch._int_mm"
    if op == "blockwise_linear":
        return (
            f"{level()}, up to {kernels().most_skinny_rows} rows from the codes; more through dequantize_blockwise_out"
        )
    return f"{level()} of {', '.join(kernels().levels())}; {kernels().threading()}, {torch.get_num_threads()} threads"
