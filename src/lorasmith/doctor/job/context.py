"""Do the examples fit into the model's positions?"""

from collections.abc import Iterator

from lorasmith.doctor.finding import Finding, error
from lorasmith.doctor.job.registry import Job, job_checks


@job_checks.register("context")
def context(job: Job) -> Iterator[Finding]:
    """No example is longer than the number of positions that the model was made for."""
    longest = max(len(example) for example in job.examples)
    if job.context is not None and longest > job.context:
        yield error(
            f"the longest example has {longest} tokens, the model was made for {job.context}; "
            f"set data.max_length={job.context}"
        )
