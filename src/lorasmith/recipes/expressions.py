"""Regular expressions in a recipe, compiled before anything is matched against them."""

import re
from collections.abc import Iterable

from lorasmith.errors import RecipeError


def require_expressions(field: str, expressions: Iterable[str]) -> None:
    """Raise RecipeError, naming field, for one of expressions that does not compile."""
    for expression in expressions:
        try:
            re.compile(expression)
        except re.error as error:
            raise RecipeError(
                f"{field}: {expression!r} is no regular expression ({error}); mend it, or escape the sign with \\"
            ) from error
