"""What is measured on: device, driver, versions, kernels in use, and the most that the device can do."""

import platform
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from measuring import Place, place, rates, tell, told

from lorasmith.ops import kernel_status
from lorasmith.version import VERSION

LIBRARIES = ("torch", "triton", "transformers", "peft", "bitsandbytes", "accelerate", "unsloth", "numpy")
REPOSITORY = Path(__file__).resolve().parents[2]


def versions() -> dict[str, str | None]:
    return {"python": platform.python_version(), "lorasmith": VERSION} | {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def said(*command: str) -> str | None:
    """What command prints; None where it cannot run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=REPOSITORY, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def device(where: Place) -> dict[str, object]:
    if not where.on_gpu:
        return {"device": platform.processor() or platform.machine(), "tiny": where.tiny}
    found = torch.cuda.get_device_properties(where.device)
    return {
        "device": found.name,
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "bytes": found.total_memory,
        "cuda": torch.version.cuda,
        "driver": said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "tiny": where.tiny,
    }


def main() -> None:
    where = place(__doc__)
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    commit = said("git", "rev-parse", "--short", "HEAD")
    tell("about", date=now, commit=commit, **device(where), versions=versions())
    with told("limits") as row:
        row |= rates(where)
    tell("kernels", status=[asdict(one) for one in kernel_status() if one.device == where.device.type])


if __name__ == "__main__":
    main()
