"""The operations: one folder each, schema (the contract), reference (the specification), kernels for devices."""

import lorasmith.ops.adam8bit.reference
import lorasmith.ops.adapted_blockwise.cpu
import lorasmith.ops.adapted_blockwise.reference
import lorasmith.ops.blockwise.cpu
import lorasmith.ops.blockwise.reference
import lorasmith.ops.blockwise_linear.cpu
import lorasmith.ops.blockwise_linear.reference
import lorasmith.ops.gated_activation.cpu
import lorasmith.ops.gated_activation.reference
import lorasmith.ops.low_rank.cpu
import lorasmith.ops.low_rank.reference
import lorasmith.ops.narrow_linear.cpu
import lorasmith.ops.narrow_linear.reference
import lorasmith.ops.rms_norm.cpu
import lorasmith.ops.rms_norm.reference
import lorasmith.ops.rotary.reference
import lorasmith.ops.rowwise.cpu
import lorasmith.ops.rowwise.reference
import lorasmith.ops.segmented_low_rank.reference
import lorasmith.ops.token_loss.cpu
import lorasmith.ops.token_loss.reference
import lorasmith.ops.updated_blockwise.reference
from lorasmith.ops import gpu
from lorasmith.ops.adam8bit.blocks import from_blocks, signed_map, to_blocks, unsigned_map
from lorasmith.ops.adam8bit.schema import AdamStep, Moment, adam8bit_
from lorasmith.ops.adapted_linear.group import Joinable, Part, adapted_linears, joinable
from lorasmith.ops.adapted_linear.product import (
    BlockwiseProduct,
    DenseProduct,
    Multiplier,
    OffsetProduct,
    Product,
    RowwiseProduct,
)
from lorasmith.ops.adapted_linear.schema import adapted_linear
from lorasmith.ops.adapted_linear.update import LowRank
from lorasmith.ops.blockwise.schema import Nested, dequantize_blockwise, double_quantize, quantize_blockwise
from lorasmith.ops.blockwise_linear.schema import blockwise_linear
from lorasmith.ops.cross_entropy import (
    head_cross_entropy,
    head_token_losses,
    linear_cross_entropy,
    linear_token_losses,
)
from lorasmith.ops.gated_activation.schema import Activation, gated_activation, gated_activation_packed
from lorasmith.ops.narrow_linear.schema import narrow_linear
from lorasmith.ops.rms_norm.schema import rms_norm
from lorasmith.ops.rotary.schema import Rotation, rotary
from lorasmith.ops.rowwise.schema import dequantize_rowwise, quantize_rowwise, rowwise_linear
from lorasmith.ops.segmented_low_rank.schema import Segments
from lorasmith.ops.status import KernelStatus, kernel_status, triton_status
from lorasmith.ops.token_loss.schema import Objective, Shaping, token_losses, token_losses_
from lorasmith.ops.updated_weight import UpdatedWeight

if gpu.devices():
    import lorasmith.ops.adam8bit.triton
    import lorasmith.ops.adapted_blockwise.triton
    import lorasmith.ops.blockwise.triton
    import lorasmith.ops.blockwise_linear.triton
    import lorasmith.ops.gated_activation.triton
    import lorasmith.ops.rms_norm.triton
    import lorasmith.ops.rotary.triton
    import lorasmith.ops.rowwise.triton
    import lorasmith.ops.segmented_low_rank.triton
    import lorasmith.ops.token_loss.triton
    import lorasmith.ops.updated_blockwise.triton  # noqa: F401

__all__ = [
    "Activation",
    "AdamStep",
    "BlockwiseProduct",
    "DenseProduct",
    "Joinable",
    "KernelStatus",
    "LowRank",
    "Moment",
    "Multiplier",
    "Nested",
    "Objective",
    "OffsetProduct",
    "Part",
    "Product",
    "Rotation",
    "RowwiseProduct",
    "Segments",
    "Shaping",
    "UpdatedWeight",
    "adam8bit_",
    "adapted_linear",
    "adapted_linears",
    "blockwise_linear",
    "dequantize_blockwise",
    "dequantize_rowwise",
    "double_quantize",
    "from_blocks",
    "gated_activation",
    "gated_activation_packed",
    "head_cross_entropy",
    "head_token_losses",
    "joinable",
    "kernel_status",
    "linear_cross_entropy",
    "linear_token_losses",
    "narrow_linear",
    "quantize_blockwise",
    "quantize_rowwise",
    "rms_norm",
    "rotary",
    "rowwise_linear",
    "signed_map",
    "to_blocks",
    "token_losses",
    "token_losses_",
    "triton_status",
    "unsigned_map",
]
