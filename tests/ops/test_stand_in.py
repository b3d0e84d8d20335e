"""Tensors on the CPU may stand for another device's; the types that products run in are then those of that device."""

import torch

from lorasmith.ops.precision import factor_dtype, product_dtype
from lorasmith.ops.stand_in import standing_for

CPU = torch.device("cpu")


def test_products_are_in_the_types_of_the_device_that_is_meant():
    with standing_for("cuda"):
        assert product_dtype(torch.float16, CPU) == torch.float16
        assert factor_dtype(torch.bfloat16, CPU) == torch.bfloat16
    assert product_dtype(torch.float16, CPU) == torch.float32
    assert factor_dtype(torch.bfloat16, CPU) == torch.float32


def test_other_devices_stand_for_themselves():
    with standing_for("cpu"):
        assert factor_dtype(torch.bfloat16, torch.device("cuda")) == torch.bfloat16
