"""How many positions a model was made for."""

from typing import Any

from transformers import PreTrainedModel

from lorasmith.attach import adapters_of
from lorasmith.errors import RecipeError


def positions_in(config: dict[str, Any]) -> int | None:
    """The number that a config.json states, whatever its name; None where it states none."""
    inner = config.get("text_config") or {}
    named = [place.get(name) for place in (config, inner) for name in ("max_position_embeddings", "n_positions")]
    return next((value for value in named if isinstance(value, int)), None)


def room_in(config: dict[str, Any], method: dict[str, Any]) -> int | None:
    """Positions that a config.json leaves to real tokens beside those of a method section's virtual ones.

    Raises RecipeError where that is none.
    """
    stated = positions_in(config)
    virtual = method.get("num_virtual_tokens", 0)
    if stated is not None and virtual >= stated - 1:
        raise RecipeError(
            f"method.num_virtual_tokens={virtual} leaves no room for text in the model's {stated} positions; use fewer"
        )
    return None if stated is None else stated - virtual


def context_of(model: PreTrainedModel) -> int | None:
    """Positions that model was made for, less the virtual tokens of its adapter; None where its config has no limit."""
    stated = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    prompted = adapters_of(model).prompted
    prompt = None if prompted is None else prompted.prompt
    return stated if stated is None or prompt is None else stated - prompt.tokens
