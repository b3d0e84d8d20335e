"""JSON that every reader takes: a number that is not finite has no place in it, and becomes null."""

import json
import math
from typing import Any

# what people are told of such a number
NOT_FINITE = "not finite"


def json_text(content: Any, *, indent: int | None = None, ensure_ascii: bool = True) -> str:
    """content as JSON, NaN and infinite numbers as null."""
    return json.dumps(_finite(content), indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    return [_finite(value) for value in content] if isinstance(content, list | tuple) else content
