"""SHiRA: y = x (W + S)^T with S [out, in] of rank (in + out) nonzero entries, at places chosen before training.

S has as many trained values as LoRA of the same rank has, and a rank of its own that is high. Source: arXiv 2406.13175,
section 3; "random" is its SHiRA-Rand, drawn as PEFT draws it, "magnitude" its SHiRA-WM: the weights of largest size.
"gradient" and "snip" look at data first (`attach/weight_gradients.py`): SHiRA-Grad takes the places where the sum of
the weight's gradients is largest, SHiRA-SNIP those where its product with the weight is.
S stays sparse in the forward; only its gradient, for a moment, and merging are dense.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from lorasmith.errors import AdapterError, AttachError
from lorasmith.methods.config import TargetedConfig
from lorasmith.methods.layer import LayerSpec
from lorasmith.methods.method import SiteMethod
from lorasmith.methods.registry import methods
from lorasmith.methods.site import BaseWeight, Constant, Site, Vector, adapter_dtype
from lorasmith.models.families import LORA_TARGETS
from lorasmith.ops.precision import without_autocast

MaskType = Literal["random", "magnitude", "gradient", "snip"]
_BY_DATA = ("gradient", "snip")


@dataclass
class ShiraConfig(TargetedConfig):
    """PEFT's fields and defaults; every mask_type but "random" is ours, and PEFT reads its files.

    A layer out x in gets r (in + out) values. random_seed None is PyTorch's own fixed one, so that every run and every
    layer of one size has the same places. Raises AttachError for a rank below 1 or an unknown mask.
    """

    METHOD: ClassVar[str] = "SHIRA"
    OURS: ClassVar[tuple[str, ...]] = ("exclude_modules",)

    r: int = 32
    mask_type: MaskType = "random"
    random_seed: int | None = None
    fan_in_fan_out: bool = False
    init_weights: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r < 1:
            raise AttachError(f"r={self.r} must be at least 1")
        masks = get_args(MaskType)
        if self.mask_type not in masks:
            raise AttachError(f"mask_type={self.mask_type!r} is not one of {', '.join(masks)}")


class ShiraSite(Site):
    """The entries of S: their values [N] and, fixed, their rows and columns [2, N]."""

    def __init__(self, config: ShiraConfig, layer: LayerSpec, dtype: torch.dtype) -> None:
        super().__init__(layer)
        self.rank, self.mask, self.seed = config.r, config.mask_type, config.random_seed
        count, room = self.rank * (layer.in_features + layer.out_features), layer.in_features * layer.out_features
        if count > room:
            most = room // (layer.in_features + layer.out_features)
            raise AttachError(f"{layer.path}: r={self.rank} asks for {count} of {room} weights; choose at most {most}")
        value = torch.zeros(count) if config.init_weights else torch.randn(count)
        self.shira_weight = Vector(value.to(device=layer.device, dtype=dtype))
        self.shira_indices = Constant(torch.zeros(2, count, dtype=torch.int32, device=layer.device))

    def describe(self) -> str:
        return f"SHiRA, {self.shira_weight.weight.numel():,} {self.mask} entries"

    @torch.no_grad()
    def begin(self, weight: BaseWeight) -> None:
        self.needs_data = self.mask in _BY_DATA
        if self.needs_data or self.layer.device.type == "meta":
            return
        if self.mask == "magnitude":
            self._sit_at_largest(weight().abs())
        else:
            generator = torch.Generator()
            if self.seed is not None:
                generator.manual_seed(self.seed)
            places = torch.randperm(self.layer.in_features * self.layer.out_features, generator=generator)
            self._sit_at(places[: self.shira_weight.weight.numel()])

    @torch.no_grad()
    def begin_at_gradient(self, weight: BaseWeight, gradient: Tensor) -> None:
        if self.mask == "snip":
            gradient = gradient * weight(torch.float32).to(gradient.device)
        self._sit_at_largest(gradient.abs())
        self.needs_data = False

    def _sit_at_largest(self, scores: Tensor) -> None:
        self._sit_at(scores.flatten().topk(self.shira_weight.weight.numel()).indices)

    def _sit_at(self, places: Tensor) -> None:
        places = places.sort().values
        rows_and_columns = torch.stack([places // self.layer.in_features, places % self.layer.in_features])
        self.shira_indices.weight.copy_(rows_and_columns)

    def restored(self, key: str, value: Tensor) -> Tensor:
        # a place outside the matrix would be written to all the same
        most = torch.tensor([[self.layer.out_features], [self.layer.in_features]], device=value.device)
        if key == "shira_indices" and bool(((value < 0) | (value >= most)).any()):
            raise AdapterError(
                f"{self.layer.path}.shira_indices has places outside the {self.layer.out_features} x "
                f"{self.layer.in_features} matrix; the file is damaged or of another model"
            )
        return value

    def loaded(self) -> None:
        self.needs_data = False

    def after(self, x: Tensor, y: Tensor, weight: BaseWeight) -> Tensor:
        if self.needs_data:
            if torch.is_grad_enabled():
                raise self._placeless()
            # trials of the model come before the data
            return y
        if torch.compiler.is_compiling():
            return y + self._dense_product(x).to(y.dtype)
        update = _SparseProduct.apply(x, self.shira_weight.weight, self.shira_indices.weight, self.layer.out_features)
        return y + update.to(y.dtype)

    def _dense_product(self, x: Tensor) -> Tensor:
        """The update of x in f32 by a dense matrix: a compiler sees no sparse tensors."""
        values, indices = self.shira_weight.weight.float(), self.shira_indices.weight.long()
        matrix_OI = values.new_zeros(self.layer.out_features, self.layer.in_features)
        with without_autocast(x.device):
            return x.float() @ matrix_OI.index_put(tuple(indices), values).T

    def refuses_merge(self) -> str | None:
        return None

    def delta(self, weight: Tensor) -> Tensor:
        if self.needs_data:
            raise self._placeless()
        change = torch.zeros_like(weight)
        values = self.shira_weight.weight.detach().to(weight)
        return change.index_put_(tuple(self.shira_indices.weight.long().to(weight.device)), values, accumulate=True)

    def saved(self, key: str, value: Tensor) -> Tensor:
        if self.needs_data:
            raise self._placeless()
        return value

    def _placeless(self) -> AttachError:
        return AttachError(
            f"{self.layer.path}: mask_type={self.mask!r} chooses its places by data, and has seen none; call "
            "lorasmith.initialize_shira_masks(model, dataloader), or train by lorasmith.train or a recipe, whose own "
            "data it then sees"
        )

    def file_keys(self) -> dict[str, str]:
        return {f"{name}.weight": name for name in ("shira_weight", "shira_indices")}


class _SparseProduct(torch.autograd.Function):
    """x S^T in float32 for x [..., in] and the values [N] of S at indices [2, N]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, indices: Tensor, out_features: int) -> Tensor:
        ctx.save_for_backward(x, values, indices)
        ctx.out_features = out_features
        return _times(x, indices, values, (out_features, x.shape[-1]))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, values, indices = ctx.saved_tensors
        (dy,) = gradients
        size = (x.shape[-1], ctx.out_features)
        dx = _times(dy, indices.flip(0), values, size).to(x.dtype) if ctx.needs_input_grad[0] else None
        # one dense product and its entries: entry by entry was three times slower (docs/log.md)
        dense_OI = dy.flatten(0, -2).float().T @ x.flatten(0, -2).float()
        rows, columns = indices.long()
        return dx, dense_OI[rows, columns].to(values.dtype), None, None


def _times(x: Tensor, indices: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    """x M^T [..., out] of x [..., in] and the matrix M [out, in] of size with these entries."""
    with without_autocast(x.device):
        matrix = torch.sparse_coo_tensor(indices.long(), values.float(), size, check_invariants=False)
        product_OT = torch.sparse.mm(matrix, x.flatten(0, -2).float().T.contiguous())
    return product_OT.T.unflatten(0, x.shape[:-1])


class Shira(SiteMethod[ShiraConfig]):
    """Sparse high-rank adaptation of linear layers."""

    config_class = ShiraConfig

    def site(self, config: ShiraConfig, layer: LayerSpec, float32: bool, shared: nn.Module | None) -> Site:
        if layer.kind != "linear":
            raise AttachError(f"{layer.path}: SHiRA serves linear layers; exclude this module")
        return ShiraSite(config, layer, adapter_dtype(layer, float32))

    def default_targets(self, model_type: str) -> list[str] | str | None:
        return ["q_proj", "v_proj"] if model_type == "phi" else LORA_TARGETS.get(model_type)


methods.add("shira", Shira())
