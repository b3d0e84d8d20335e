"""P-tuning: virtual tokens that an LSTM or an MLP makes of trainable rows. Source: arXiv 2103.10385, section 3.2.

A file holds what the encoder makes of the rows, and neither of the two, as in PEFT: it serves inference.
"""

import logging
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from torch import Tensor, nn

from lorasmith.errors import AttachError
from lorasmith.methods.config import PromptLearningConfig
from lorasmith.methods.method import InputMethod, Prompt
from lorasmith.methods.prompt_embedding import PromptEmbedding
from lorasmith.methods.registry import methods
from lorasmith.models.shape import ModelShape

log = logging.getLogger(__name__)


class PromptEncoderReparameterizationType(StrEnum):
    """What stands between the trained rows and the virtual tokens."""

    MLP = "MLP"
    LSTM = "LSTM"


@dataclass
class PromptEncoderConfig(PromptLearningConfig):
    """PEFT's fields and defaults: encoder_hidden_size None is the model's width; an MLP has always three layers.

    Raises AttachError for an unknown encoder, a size below 1 or a dropout outside 0 to 1.
    """

    METHOD: ClassVar[str] = "P_TUNING"

    encoder_reparameterization_type: PromptEncoderReparameterizationType | str = PromptEncoderReparameterizationType.MLP
    encoder_hidden_size: int | None = None
    encoder_num_layers: int = 2
    encoder_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        kinds, kind = PromptEncoderReparameterizationType, self.encoder_reparameterization_type
        if kind not in [one.value for one in kinds]:
            raise AttachError(f"encoder_reparameterization_type={kind!r} is not one of {', '.join(kinds)}")
        self.encoder_reparameterization_type = kinds(kind)
        if min(self.encoder_hidden_size or 1, self.encoder_num_layers) < 1:
            raise AttachError(
                f"encoder_hidden_size={self.encoder_hidden_size}, encoder_num_layers={self.encoder_num_layers}: "
                "both must be at least 1"
            )
        if not 0 <= self.encoder_dropout < 1:
            raise AttachError(f"encoder_dropout={self.encoder_dropout} must lie in [0, 1)")


class EncodedPrompt(PromptEmbedding):
    """Rows [rows, width] and the encoder that makes virtual tokens of them; only the rows once a file was loaded."""

    def __init__(self, config: PromptEncoderConfig, base: nn.Module) -> None:
        super().__init__(config, base)
        self.lstm_head: nn.LSTM | None = None
        self.mlp_head: nn.Sequential | None = None
        # a file's tokens are made already
        if not config.inference_mode:
            self._encode(config)

    def _encode(self, config: PromptEncoderConfig) -> None:
        width, hidden = self.embedding.embedding_dim, config.encoder_hidden_size
        assert hidden is not None
        if config.encoder_reparameterization_type == PromptEncoderReparameterizationType.MLP:
            if config.encoder_num_layers != 2:
                log.warning("encoder_num_layers=%d counts for an LSTM alone", config.encoder_num_layers)
            layers = [nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
            self.mlp_head = nn.Sequential(*layers, nn.Linear(hidden, width))
        else:
            layers_and_dropout = {"num_layers": config.encoder_num_layers, "dropout": config.encoder_dropout}
            self.lstm_head = nn.LSTM(width, hidden, bidirectional=True, batch_first=True, **layers_and_dropout)
            both = 2 * hidden
            self.mlp_head = nn.Sequential(nn.Linear(both, both), nn.ReLU(), nn.Linear(both, width))
        self.to(self.embedding.weight.device)

    def describe(self) -> str:
        through = "an LSTM" if self.lstm_head is not None else "an MLP"
        return super().describe() if self.mlp_head is None else f"{super().describe()} through {through}"

    def embeddings(self) -> Tensor:
        rows_RD = self.embedding.weight
        if self.lstm_head is not None:
            rows_RD = self.lstm_head(rows_RD[None])[0][0]
        return rows_RD if self.mlp_head is None else self.mlp_head(rows_RD)

    def load_embeddings(self, embeddings: Tensor) -> None:
        super().load_embeddings(embeddings)
        # what was saved has been through the encoder
        self.lstm_head = self.mlp_head = None


class PTuning(InputMethod[PromptEncoderConfig]):
    """Virtual tokens through an encoder."""

    config_class = PromptEncoderConfig

    def prepare(self, config: PromptEncoderConfig, shape: ModelShape) -> None:
        super().prepare(config, shape)
        config.encoder_hidden_size = config.encoder_hidden_size or config.token_dim

    def prompt(self, config: PromptEncoderConfig, embedding: nn.Module) -> Prompt:
        return EncodedPrompt(config, embedding)

    def missing_in_files(self, config: PromptEncoderConfig) -> str | None:
        return "the encoder of its virtual tokens"


methods.add("p_tuning", PTuning())
