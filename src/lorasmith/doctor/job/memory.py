"""Will it fit?"""

from collections.abc import Iterator

from lorasmith.doctor.finding import Finding, warning
from lorasmith.doctor.job.registry import Job, job_checks
from lorasmith.planning.memory_plan import readable


@job_checks.register("memory")
def memory(job: Job) -> Iterator[Finding]:
    """The predicted peak lies below the memory that is free now."""
    if job.plan is None or job.available is None or job.plan.total <= job.available:
        return
    yield warning(
        f"a step is predicted to need {readable(job.plan.total)}, {readable(job.available)} are free; lower "
        "training.batch_size or data.max_length, or set training.gradient_checkpointing=true"
    )
