"""Is enough held out for a score to say anything?"""

from collections.abc import Iterator

from lorasmith.doctor.finding import Finding, warning
from lorasmith.doctor.job.registry import Job, job_checks


@job_checks.register("held out")
def held_out(job: Job) -> Iterator[Finding]:
    """More than one example is held out: intervals are made of the differences between them."""
    if job.held_out == 1:
        yield warning(
            "only 1 example is held out, so the scores' intervals have no width and say nothing; raise "
            "data.validation_fraction or name more data with data.validation"
        )
