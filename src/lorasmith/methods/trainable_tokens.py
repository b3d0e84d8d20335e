"""Trainable tokens: chosen rows of the embedding train, also those of a head that shares them; all others stay.

For a vocabulary that got new words this trains and saves n rows instead of the whole matrix. PEFT's key says delta, but
holds the rows themselves, so that a base whose new rows were drawn anew gives the same model.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorasmith.errors import AttachError
from lorasmith.methods.config import TargetedConfig
from lorasmith.methods.layer import LayerSpec
from lorasmith.methods.matching import named
from lorasmith.methods.method import INPUT_EMBEDDING, SiteMethod
from lorasmith.methods.registry import methods
from lorasmith.methods.site import BaseWeight, Constant, Site, Vector, adapter_dtype

_OURS_ALONE = ("exclude_modules", "modules_to_save")
TokenIndices = list[int] | dict[str, list[int]]


@dataclass
class TrainableTokensConfig(TargetedConfig):
    """PEFT's fields and defaults: token_indices are the rows that train, those of the input embedding without targets.

    A dictionary gives each target its own rows. init_weights False starts them at random instead of where they are.
    Raises AttachError for rows below 0 and rows that are named twice.
    """

    METHOD: ClassVar[str] = "TRAINABLE_TOKENS"
    trains_heads: ClassVar[bool] = False

    token_indices: TokenIndices = field(default_factory=list)
    init_weights: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = self.token_indices
        for rows in chosen.values() if isinstance(chosen, dict) else [chosen]:
            if len(set(rows)) < len(rows) or min(rows, default=0) < 0:
                raise AttachError(f"token indices {rows} must be at least 0 and each named once")

    def to_dict(self) -> dict[str, Any]:
        # PEFT's config lacks these two fields, and warns of them in a file
        fields = super().to_dict()
        return {name: value for name, value in fields.items() if name not in _OURS_ALONE or value is not None}

    def indices_of(self, path: str) -> list[int]:
        """The rows that train of the module at path. Raises AttachError where there are none."""
        chosen = self.token_indices
        if isinstance(chosen, dict):
            chosen = next((rows for name, rows in chosen.items() if named(path, name)), [])
        if not chosen:
            raise AttachError(f"{path}: no token is named to train; give token_indices, such as the ids of new tokens")
        return chosen


class TokenSite(Site):
    """Rows [n, width] in the place of the base's, of an embedding or of the output head.

    A site with a partner shares the partner's rows.
    """

    # a whole embedding beside rows that replace it would be the size that the method saves
    keeps_base = False
    starts_as_base = True

    def __init__(
        self, layer: LayerSpec, indices: list[int], dtype: torch.dtype, inside: str, partner: "TokenSite | None" = None
    ) -> None:
        super().__init__(layer)
        rows, width = _matrix(layer)
        if max(indices) >= rows:
            raise AttachError(f"{layer.path} has {rows} rows, token {max(indices)} is not among them; resize it first")
        self.indices, self.inside = indices, inside
        self.partners = () if partner is None else (partner,)
        order = torch.tensor(indices).argsort()
        self.order, self.ordered = (
            Constant(order.to(layer.device)),
            Constant(torch.tensor(indices)[order].to(layer.device)),
        )
        if partner is None:
            value = torch.zeros(len(indices), width, device=layer.device, dtype=dtype)
            self.trainable_tokens_delta: nn.Module = Vector(value)
        else:
            self.trainable_tokens_delta = partner.trainable_tokens_delta

    @property
    def rows(self) -> Tensor:
        """The new rows [n, width], in the order of the config's indices."""
        value = self.trainable_tokens_delta.weight
        assert isinstance(value, Tensor)
        return value

    def describe(self) -> str:
        return f"{len(self.indices)} trainable tokens" + (", tied" if self.partners else "")

    @torch.no_grad()
    def begin(self, weight: BaseWeight) -> None:
        if not self.partners:
            self.rows.copy_(weight()[self.indices] if self.starts_as_base else torch.randn_like(self.rows))

    def after(self, x: Tensor, y: Tensor, weight: BaseWeight) -> Tensor:
        return self._looked_up(x, y) if self.layer.kind == "embedding" else self._scored(x, y, weight)

    def _looked_up(self, ids: Tensor, y: Tensor) -> Tensor:
        place = torch.searchsorted(self.ordered.weight, ids).clamp(max=len(self.indices) - 1)
        new = functional.embedding(self.order.weight[place], self.rows) * self.layer.output_scale
        return torch.where((self.ordered.weight[place] == ids)[..., None], new.to(y.dtype), y)

    def _scored(self, x: Tensor, y: Tensor, weight: BaseWeight) -> Tensor:
        index = torch.tensor(self.indices, device=y.device)
        scores = functional.linear(x, self.rows.to(x.dtype)).to(y.dtype)
        if self.layer.has_bias:
            # what the base's own scores hold besides its rows
            scores = scores + (y.index_select(-1, index) - functional.linear(x, weight()[self.indices].to(x.dtype)))
        return y.index_copy(-1, index, scores)

    def refuses_merge(self) -> str | None:
        return None

    @torch.no_grad()
    def delta(self, weight: Tensor) -> Tensor:
        change = torch.zeros_like(weight)
        change[self.indices] = self.rows.to(weight) - weight[self.indices]
        return change

    def file_keys(self) -> dict[str, str]:
        # beside LoRA a tied head's rows are not written, alone they are: PEFT's files
        if self.partners and self.inside:
            return {}
        return {"trainable_tokens_delta.weight": f"{self.inside}trainable_tokens_delta"}


def _matrix(layer: LayerSpec) -> tuple[int, int]:
    if layer.kind == "embedding":
        return layer.in_features, layer.out_features
    if layer.kind == "linear":
        return layer.out_features, layer.in_features
    raise AttachError(f"{layer.path}: tokens are rows of an embedding or an output head; name one of these")


class TrainableTokens(SiteMethod[TrainableTokensConfig]):
    """Rows of the embedding. inside is what stands before the key in files: another method's step to them."""

    config_class = TrainableTokensConfig

    def __init__(self, inside: str = "") -> None:
        self.inside = inside

    def site(self, config: TrainableTokensConfig, layer: LayerSpec, float32: bool, shared: nn.Module | None) -> Site:
        site = TokenSite(layer, config.indices_of(layer.path), adapter_dtype(layer, float32), self.inside)
        site.starts_as_base = config.init_weights
        return site

    def default_targets(self, model_type: str) -> list[str] | str | None:
        return INPUT_EMBEDDING

    def ties(self, config: TrainableTokensConfig) -> bool:
        return True

    def tied_site(self, config: TrainableTokensConfig, site: Site, layer: LayerSpec) -> Site:
        assert isinstance(site, TokenSite)
        chosen = config.token_indices
        if isinstance(chosen, dict) and any(named(layer.path, name) for name in chosen):
            own = config.indices_of(layer.path)
            if own != site.indices:
                raise AttachError(
                    f"{layer.path} shares its rows with {site.layer.path}: tokens {own} and {site.indices} cannot "
                    "train apart; name the same for both, or only the embedding"
                )
        return TokenSite(layer, site.indices, site.rows.dtype, self.inside, partner=site)


methods.add("trainable_tokens", TrainableTokens())
