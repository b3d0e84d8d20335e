"""`lorasmith combine`."""

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lorasmith.attach import COMBINATION_TYPES, Composition
from lorasmith.errors import InputError
from lorasmith.recipes.combine import combine_adapters

app = typer.Typer(rich_markup_mode=None, add_completion=False)


class MajoritySign(StrEnum):
    """What elects the sign of an entry in TIES."""

    total = "total"
    frequency = "frequency"


@app.command()
def combine(
    adapters: Annotated[list[str], typer.Argument(help="Run folders or adapter folders, of one base.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    weights: Annotated[
        str | None, typer.Option(help="A weight an adapter, as in 0.7,-0.3; default: equal shares of 1.")
    ] = None,
    how: Annotated[str | None, typer.Option(help=f"{', '.join(COMBINATION_TYPES)}; default svd, IA3: linear.")] = None,
    rank: Annotated[int | None, typer.Option("--rank", "-r", help="Rank of an svd; default: the largest.")] = None,
    density: Annotated[float | None, typer.Option(help="Share of each update that pruning keeps.")] = None,
    majority_sign: Annotated[
        MajoritySign | None, typer.Option(help="What elects a sign in TIES; default total.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of what DARE drops; default 0.")] = None,
) -> None:
    """Write the weighted sum of several adapters as one adapter; the base model is not needed.

    cat is exact, svd the nearest of a rank; linear sums the factors, which is a rough guess. A negative weight
    subtracts an adapter.

    \b
    Examples:
      lorasmith combine adapters/poems adapters/law --weights 0.7,0.3 --out adapters/both
      lorasmith combine adapters/poems adapters/law --how ties_svd --density 0.3 --out adapters/both
    """
    sign = majority_sign or MajoritySign.total
    composition = Composition(how, svd_rank=rank, density=density, majority_sign_method=sign.value, seed=seed or 0)
    arithmetic = composition.arithmetic
    _refuse_unread(
        how or "svd",
        {
            f"--rank {rank}": rank is None or composition.ground == "product",
            f"--density {density}": density is None or arithmetic.pruning != "none",
            f"--majority-sign {sign}": majority_sign is None or arithmetic.elects,
            f"--seed {seed}": seed is None or arithmetic.pruning == "random",
        },
    )
    for line in combine_adapters(adapters, _numbers(weights), composition, out):
        typer.echo(line)


def _refuse_unread(how: str, fits: dict[str, bool]) -> None:
    """Raise InputError for the options that say nothing to this way of combining."""
    unread = [option for option, does in fits.items() if not does]
    if unread:
        raise InputError(f"--how {how} does not read {', '.join(unread)}; leave that out, or choose another --how")


def _numbers(text: str | None) -> list[float]:
    if text is None:
        return []
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"--weights {text}: give numbers with commas between them, such as 0.7,0.3")
    return numbers
