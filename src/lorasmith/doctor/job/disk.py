"""Is there room on the disk for what the run will write?"""

import shutil
from collections.abc import Iterator

from lorasmith.doctor.finding import Finding, warning
from lorasmith.doctor.job.registry import Job, job_checks
from lorasmith.planning.memory_plan import ADAMW_BYTES, readable

# a trained tensor in f32, as checkpoints and the adapter hold it
WEIGHT_BYTES = 4


@job_checks.register("disk")
def disk(job: Job) -> Iterator[Finding]:
    """The adapter, the kept checkpoints, the best one and the one that is being written fit beside each other."""
    if job.output is None:
        return
    trained = sum(parameter.numel() for parameter in job.model.parameters() if parameter.requires_grad)
    checkpoints = (job.kept_checkpoints + 2) * trained * (WEIGHT_BYTES + ADAMW_BYTES)
    needed = round(checkpoints + trained * WEIGHT_BYTES)
    free = shutil.disk_usage(next(path for path in [job.output, *job.output.absolute().parents] if path.is_dir())).free
    if needed > free:
        yield warning(
            f"the run will write {readable(needed)} to {job.output}, {readable(free)} are free there; free some space, "
            "lower training.keep_checkpoints, or choose another output"
        )
