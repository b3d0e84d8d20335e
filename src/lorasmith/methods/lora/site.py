"""What all shapes of LoRA share: the rank, the scaling, the dropout, and the start of the factors."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from lorasmith.methods.inits import Start
from lorasmith.methods.layer import LayerSpec
from lorasmith.methods.lora.config import LoraConfig
from lorasmith.methods.site import BaseWeight, FactorPair, Site


class LoraSite(Site, ABC):
    """What the three shapes of LoRA share; A and B are child modules named as in PEFT.

    Each is an update s B A of the weight as a matrix [O, K], whose rows are what one output is made with.
    """

    def __init__(self, config: LoraConfig, layer: LayerSpec) -> None:
        super().__init__(layer)
        self.rank = config.rank_of(layer.path)
        self.scaling = config.scaling_of(layer.path)
        self.start = config.start()
        self.start.check(self.rank, min(layer.in_features, layer.out_features))
        self.lora_dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()

    @abstractmethod
    def factors(self) -> tuple[Tensor, Tensor]:
        """A [R, K] and B [O, R]."""

    @abstractmethod
    def as_rows(self, weight: Tensor) -> Tensor:
        """The weight of the module as a matrix [O, K]."""

    def times(self, weight: BaseWeight, rows: Tensor) -> Tensor:
        """rows W^T of rows [R, K] and the weight W as a matrix [O, K]: [R, O]."""
        return rows @ self.as_rows(weight()).to(rows.dtype).T

    @property
    def dropped(self) -> float:
        """The share of the input that is dropped now."""
        acts = isinstance(self.lora_dropout, nn.Dropout) and self.lora_dropout.training
        return self.lora_dropout.p if isinstance(self.lora_dropout, nn.Dropout) and acts else 0.0

    def factor_pairs(self) -> list[FactorPair]:
        # an embedding's factors have other names, and begin the other way round: A at zero
        a, b = self._modules.get("lora_A"), self._modules.get("lora_B")
        if a is None or b is None or self.refuses_merge():
            return []
        return [FactorPair(a.get_parameter("weight"), b.get_parameter("weight"), self.scaling)]

    def describe(self) -> str:
        return f"LoRA, rank {self.rank}, scaling {self.scaling:g}"

    def refuses_merge(self) -> str | None:
        grouped = self.layer.conv is not None and self.layer.conv.groups > 1
        return "LoRA on a convolution with groups is no sum of kernels" if grouped else None

    def delta_bias(self, bias: Tensor | None) -> Tensor | None:
        b = self._modules.get("lora_B")
        extra = None if b is None else b._parameters["bias"]
        return None if extra is None else self.scaling * extra.detach()


def draw_(start: Start, a: nn.Module, b: nn.Module, rank: int) -> None:
    """Let the factors of new layers begin; a bias of B begins at zero wherever the update does."""
    start.draw_(a.get_parameter("weight").data, b.get_parameter("weight").data, rank)
    bias = b._parameters.get("bias")
    if bias is not None and not start.wanders:
        nn.init.zeros_(bias)
