"""Will it fit?"""

from collections.abc import Iterator

from lorasmith.doctor.finding import Finding, warning
from lorasmith.doctor.job.registry import Job, job_checks
from lorasmith.planning.memory_plan import readable


@job_checks.register("memory")
def memory(job: Job) -> Iterator[Finding]:
    """The predicted peak lies below the memory that is free now, and what leaves a GPU has room on the host."""
    if job.plan is None:
        return
    if job.available is not None and job.plan.total > job.available:
        yield warning(
            f"a step is predicted to need {readable(job.plan.total)}, {readable(job.available)} are free; lower "
            "training.batch_size or data.max_length, or set training.gradient_checkpointing=true"
        )
    if job.host_available is not None and job.plan.host > job.host_available:
        yield warning(
            f"{readable(job.plan.host)} of a step are to wait in host memory, where {readable(job.host_available)} are "
            "free; lower training.batch_size or data.max_length"
        )
