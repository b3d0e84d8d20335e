"""The four kinds of method, each with the one thing that attaching asks of it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

from torch import Tensor, nn

from lorasmith.methods.config import AdapterConfig, TargetedConfig
from lorasmith.methods.layer import LayerSpec
from lorasmith.methods.site import Site

C = TypeVar("C", bound=AdapterConfig)
T = TypeVar("T", bound=TargetedConfig)


class Method(ABC, Generic[C]):
    """A method of adapting: its name, its config class, and what it builds."""

    config_class: type[C]
    # target_modules of a recipe that names none; None leaves the choice to the model's family
    recipe_targets: str | None = None
    # whether the examples of a batch may stand behind one another in one row
    packs: bool = True

    @property
    def peft_type(self) -> str:
        return self.config_class.METHOD


class SiteMethod(Method[T], Generic[T]):
    """A method that sits on modules: LoRA, IA3, bottleneck adapters."""

    @abstractmethod
    def site(self, config: T, layer: LayerSpec, float32: bool, shared: nn.Module | None) -> Site:
        """The site at layer, its tensors in float32 beside a 16-bit layer if float32; shared is what `shared` made.

        Raises AttachError for a kind of layer that the method does not serve.
        """

    def shared(self, config: T, layers: Sequence[LayerSpec], float32: bool) -> nn.Module | None:
        """What all sites of one adapter own together (VeRA's matrices), made once; each site holds it as a child."""
        return None

    @abstractmethod
    def default_targets(self, model_type: str) -> list[str] | str | None:
        """Target modules for a model type, None where there is no known choice."""

    def prepare(self, config: T, model_type: str) -> None:
        """Fill in what the config leaves to the model type. Raises AttachError where it cannot be known."""

    def refuses_parameters(self, config: T) -> str | None:
        """Why no site of this config can sit on a bare parameter, such as a stack of experts; None where one can."""
        return f"{self.peft_type} acts on whole layers; LoRA reaches bare parameters"

    def biases(self, config: T) -> str:
        """Which biases of the base train too: "none", "all", or "lora_only" for those of the adapted modules."""
        return "none"


class InputMethod(Method[C], Generic[C]):
    """A method that puts virtual tokens before the input: prompt tuning and its relatives."""

    packs = False

    @abstractmethod
    def prompt(self, config: C, embedding: nn.Module, width: int) -> "Prompt":
        """The trainable prompt for a model with this input embedding of this width."""


class Prompt(nn.Module, ABC):
    """Trainable virtual tokens."""

    @abstractmethod
    def embeddings(self) -> Tensor:
        """The virtual tokens' embeddings [tokens, width]."""

    @abstractmethod
    def load_embeddings(self, embeddings: Tensor) -> None:
        """Take over embeddings [tokens, width] that were saved before."""


class SelectiveMethod(Method[C], Generic[C]):
    """A method that trains tensors of the base model themselves: BitFit and its relatives."""

    @abstractmethod
    def selects(self, config: C, name: str, parameter: nn.Parameter) -> bool:
        """Whether the parameter of this full name trains."""
