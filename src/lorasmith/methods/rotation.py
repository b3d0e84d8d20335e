"""Turning features block by block, which OFT and BOFT share. Blocks are n features wide; R is [blocks, n, n]."""

import torch
from torch import Tensor

# features that one product turns together, where the blocks are narrower; 32 was slower (docs/log.md)
_WIDTH = 16


def turned(x: Tensor, rotations: Tensor) -> Tensor:
    """x [..., blocks n] R in the type of x, multiplied in the wider type of the two; one R [1, n, n] may serve all."""
    # in 16 bits a small rotation's diagonal would round to one
    wide = torch.promote_types(x.dtype, rotations.dtype)
    if rotations.shape[0] > 1:
        rotations = _joined(rotations)
    x_BN = x.to(wide).unflatten(-1, (-1, rotations.shape[1]))
    if rotations.shape[0] == 1:
        return (x_BN @ rotations[0].to(wide)).flatten(-2).to(x.dtype)
    return torch.einsum("...bk,bkc->...bc", x_BN, rotations.to(wide)).flatten(-2).to(x.dtype)


def _joined(rotations: Tensor) -> Tensor:
    """Rotations [blocks, n, n], neighbours on the diagonal of wider ones: blocks of a few features are all overhead."""
    blocks, n, _ = rotations.shape
    count = max(k for k in range(1, max(2, _WIDTH // n + 1)) if blocks % k == 0)
    if count == 1:
        return rotations
    one = torch.eye(count, device=rotations.device, dtype=rotations.dtype)
    apart = rotations.unflatten(0, (-1, count))[:, :, :, None] * one[:, None, :, None]
    return apart.reshape(-1, count * n, count * n)


def cayley(skew: Tensor) -> Tensor:
    """The rotations (I - Q)(I + Q)^-1 of skew-symmetric Q [..., n, n], at least f32."""
    # torch solves nothing in 16 bits, which would round a small rotation's diagonal to one as well
    wide = skew.to(torch.promote_types(skew.dtype, torch.float32))
    one = torch.eye(wide.shape[-1], device=wide.device, dtype=wide.dtype)
    return torch.linalg.solve(one + wide, one - wide, left=False)
