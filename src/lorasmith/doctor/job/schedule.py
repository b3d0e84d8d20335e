"""Does the learning rate get to where it is meant to be?"""

from collections.abc import Iterator

from lorasmith.doctor.finding import Finding, warning
from lorasmith.doctor.job.registry import Job, job_checks


@job_checks.register("schedule")
def schedule(job: Job) -> Iterator[Finding]:
    """The warm-up ends before the run does, where its steps are stated."""
    if job.steps is not None and job.warmup > job.steps:
        yield warning(
            f"training.warmup={job.warmup:g} is longer than the run of {job.steps} steps, so the learning rate never "
            "reaches its peak; lower it, or train longer"
        )
