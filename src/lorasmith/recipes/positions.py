"""How many positions a model was made for."""

from typing import Any

from transformers import PreTrainedModel


def positions_in(config: dict[str, Any]) -> int | None:
    """The number that a config.json states, whatever its name; None where it states none."""
    inner = config.get("text_config") or {}
    named = [place.get(name) for place in (config, inner) for name in ("max_position_embeddings", "n_positions")]
    return next((value for value in named if isinstance(value, int)), None)


def context_of(model: PreTrainedModel) -> int | None:
    """Positions that model was made for; None where its config states no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)
