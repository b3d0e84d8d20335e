"""The four kinds of method, each with the one thing that attaching asks of it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from lorasmith.methods.config import AdapterConfig, PromptLearningConfig, TargetedConfig
from lorasmith.methods.layer import LayerSpec
from lorasmith.methods.names import TaskType
from lorasmith.methods.site import Site
from lorasmith.methods.training_part import TrainingPart
from lorasmith.models.shape import ModelShape

# stands for the model's input embedding where a method is placed on that
INPUT_EMBEDDING = "input-embedding"

C = TypeVar("C", bound=AdapterConfig)
T = TypeVar("T", bound=TargetedConfig)
P = TypeVar("P", bound=PromptLearningConfig)


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

    def sits_on_blocks(self, config: T) -> bool:
        """Whether a target may be a module of several layers, to which a site is handed as one of kind "block"."""
        return False

    def prepare(self, config: T, model_type: str) -> None:
        """Fill in what the config leaves to the model type. Raises AttachError where it cannot be known."""

    def refuses_parameters(self, config: T) -> str | None:
        """Why no site of this config can sit on a bare parameter, such as a stack of experts; None where one can."""
        return f"{self.peft_type} acts on whole layers; LoRA reaches bare parameters"

    def exported(self, config: T) -> T:
        """The config that a file holds beside what its sites export."""
        return config

    def ties(self, config: T) -> bool:
        """Whether layers that share their weight with a target change with it: a head with the embedding."""
        return False

    def tied_site(self, config: T, site: Site, layer: LayerSpec) -> Site:
        """The site at layer, which shares its weight with the one that site is at; its partner is site."""
        raise NotImplementedError(f"{self.peft_type} does not change layers that share a weight together")

    def companions(self, config: T) -> "Sequence[tuple[SiteMethod[Any], TargetedConfig]]":
        """Other methods that config asks for beside this one, with configs of their own, under the same adapter."""
        return []

    def biases(self, config: T) -> str:
        """Which biases of the base train too: "none", "all", or "lora_only" for those of the adapted modules."""
        return "none"

    def training_part(self, config: T, sites: Sequence[tuple[str, Site]]) -> TrainingPart | None:
        """What the method does during training, for the adapter that has these sites (path, site); made once."""
        return None


class InputMethod(Method[P], Generic[P]):
    """A method that puts virtual tokens before the input: prompt tuning and its relatives."""

    packs = False

    def prepare(self, config: P, shape: ModelShape) -> None:
        """Fill in what the config leaves to the model."""
        config.token_dim = config.token_dim or shape.width
        config.num_layers = config.num_layers or shape.layers
        config.num_attention_heads = config.num_attention_heads or shape.heads
        parts = 2 if config.task_type == TaskType.SEQ_2_SEQ_LM else 1
        config.num_transformer_submodules = config.num_transformer_submodules or parts

    @abstractmethod
    def prompt(self, config: P, embedding: nn.Module) -> "Prompt":
        """The trainable prompt, of a config that was prepared, for a model with this input embedding."""

    def missing_in_files(self, config: P) -> str | None:
        """What trains and is not in the adapter's file, so that training cannot go on from it; None for nothing."""
        return None


class Prompt(nn.Module, ABC):
    """Trainable virtual tokens."""

    # how many stand before every input
    tokens: int

    def describe(self) -> str:
        """What trains, in a few words."""
        return f"{self.tokens} virtual tokens"

    @abstractmethod
    def embeddings(self) -> Tensor:
        """What a file holds of the virtual tokens: their embeddings [rows, width], of which the first `tokens` act."""

    @abstractmethod
    def load_embeddings(self, embeddings: Tensor) -> None:
        """Take over embeddings [rows, width] that were saved before."""

    @torch.no_grad()
    def stored(self) -> Tensor:
        """The embeddings as a file holds them: without dropout, whatever mode the prompt is in."""
        training = self.training
        try:
            return self.eval().embeddings().detach()
        finally:
            self.train(training)


class Prefix(Prompt):
    """Trainable keys and values that stand before those of every attention layer, instead of tokens at the input."""

    # how many layers there are
    layers: int

    @abstractmethod
    def keys_and_values(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values [heads, tokens, width] of the attention layer of this number."""


class SelectiveMethod(Method[T], Generic[T]):
    """A method that trains tensors of the base model themselves: BitFit and its relatives.

    Its config says in which modules, and what is in those: target_modules None takes the whole model.
    """

    # what PEFT's files have between the path of a module and the name of its tensor
    infix: str = ""

    def default_targets(self, model_type: str) -> list[str] | str | None:
        """Target modules for a model type, None for the whole model."""
        return None

    @abstractmethod
    def selects(self, config: T, name: str, parameter: nn.Parameter) -> bool:
        """Whether the parameter of this full name, in a module that is targeted, trains."""
