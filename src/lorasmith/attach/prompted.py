"""The prompts of a model's adapters: which there are, and which acts."""

from torch import nn
from transformers import PreTrainedModel

from lorasmith.attach.prefixes import Prefixes
from lorasmith.attach.virtual_tokens import VirtualTokens
from lorasmith.errors import AttachError
from lorasmith.methods import Prefix, Prompt


class PromptEncoder(nn.ModuleDict):
    """The prompts of all adapters, by name; a child of the model, so that they are its parameters."""


class Prompted:
    """The model's prompts, and the hooks through which the acting one enters.

    Raises AttachError for a model without input embeddings.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.embedding = input_embedding(model)
        self.encoder = PromptEncoder()
        model.add_module("prompt_encoder", self.encoder)
        self.active: str | None = None
        self.enabled = True
        self._tokens: VirtualTokens | None = None
        self._prefixes: Prefixes | None = None

    def add(self, name: str, prompt: Prompt) -> None:
        """Hold prompt as that of the adapter of this name."""
        self.encoder[name] = prompt
        self.encoder.train(self.model.training)
        assert isinstance(self.model, PreTrainedModel)
        if isinstance(prompt, Prefix):
            self._prefixes = self._prefixes or Prefixes(self.model, self)
        else:
            self._tokens = self._tokens or VirtualTokens(self.model, self.embedding, self)

    def detach(self) -> None:
        """Take the hooks and the prompts off the model."""
        for way in (self._tokens, self._prefixes):
            for handle in way.handles if way is not None else []:
                handle.remove()
        del self.model._modules["prompt_encoder"]

    @property
    def prompt(self) -> Prompt | None:
        """The prompt that acts now."""
        if not self.enabled or self.active is None or self.active not in self.encoder:
            return None
        return self.of(self.active)

    @property
    def virtual(self) -> Prompt | None:
        """The same, where it stands at the input."""
        return None if isinstance(self.prompt, Prefix) else self.prompt

    @property
    def prefix(self) -> Prefix | None:
        """The same, where it stands before every layer's keys and values."""
        found = self.prompt
        return found if isinstance(found, Prefix) else None

    def of(self, name: str) -> Prompt:
        """The prompt of one adapter."""
        found = self.encoder[name]
        assert isinstance(found, Prompt)
        return found


def input_embedding(model: nn.Module) -> nn.Module:
    """The module that makes model's inputs of token ids. Raises AttachError where there is none."""
    found = model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None
    if not isinstance(found, nn.Module):
        raise AttachError(f"{type(model).__name__} has no input embeddings; soft prompts need a transformers model")
    return found
