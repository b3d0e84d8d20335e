"""`python -m lorasmith.quickstart`: the main job, end to end, on the embedded base."""

import argparse
import itertools
import sys
import time
from pathlib import Path

from lorasmith.errors import LorasmithError
from lorasmith.quickstart.run import Options, Result, quickstart

QUICK_STEPS = 20


def main() -> int:
    """Runs the quickstart and prints what came of it; returns the exit code."""
    given = _arguments()
    steps = QUICK_STEPS if given.quick else Options.steps
    folder = given.output or unused_folder(Path("runs/quickstart"))
    began = time.perf_counter()
    try:
        result = quickstart(Options(given.seed, steps, folder, given.device))
    except LorasmithError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print("\n".join(summary(result, time.perf_counter() - began)))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lorasmith.quickstart", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"a smoke test of {QUICK_STEPS} steps, too few to learn")
    parser.add_argument("--seed", type=int, default=0, help="of the training items and the adapter's start")
    parser.add_argument("--output", type=Path, help="the run folder (default: the first free runs/quickstart...)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="where it runs")
    return parser.parse_args()


def unused_folder(first: Path) -> Path:
    """first, or first-2, first-3 ...: whichever does not exist yet."""
    names = itertools.chain([first], (first.with_name(f"{first.name}-{number}") for number in itertools.count(2)))
    return next(folder for folder in names if not folder.exists())


def summary(result: Result, seconds: float) -> list[str]:
    """What the quickstart says at its end."""
    return [
        "",
        f"test questions answered, about people and things that no training story names ({result.items} of them):",
        f"  always the commonest answer  {result.majority:7.1%}",
        f"  base in NF4, before          {result.before:7.1%}",
        f"  with the adapter, after      {result.after:7.1%}",
        "sizes:",
        f"  base in 32 bits              {result.dense_bytes / 1024:7,.0f} KiB",
        f"  base in NF4 as it trained    {result.quantized_bytes / 1024:7,.0f} KiB",
        f"  adapter on the disk          {result.adapter_bytes / 1024:7,.0f} KiB",
        f"{seconds:.0f} s; report: {result.report}",
        "",
        "next, on your own MODEL (a folder or a name on the hub) and data.jsonl (prompt + completion, or messages):",
        "  lorasmith train --model MODEL --data data.jsonl --output runs/mine --dry-run",
        "  lorasmith train --model MODEL --data data.jsonl --output runs/mine",
        "  lorasmith generate runs/mine --base",
    ]


if __name__ == "__main__":
    sys.exit(main())
