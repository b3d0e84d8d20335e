"""Does the loss cover anything?"""

from collections.abc import Iterator

from lorasmith.doctor.finding import Finding, error, warning
from lorasmith.doctor.job.registry import Job, job_checks


@job_checks.register("labels")
def labels(job: Job) -> Iterator[Finding]:
    """At least one token of every example is learned, and a classifier sees more than one class."""
    if job.task == "classification":
        classes = {example.labels for example in job.examples}
        if len(classes) == 1:
            yield error("every training record has the same label; a classifier needs records of two classes or more")
        return
    silent = sum(example.supervised == 0 for example in job.examples)
    if silent == len(job.examples):
        yield error(
            f"all labels are masked: none of the {len(job.examples)} examples has a token to learn; "
            "raise data.max_length if answers are cut off, or set data.loss_on=all"
        )
    elif silent:
        yield warning(
            f"{silent} of {len(job.examples)} examples have no token to learn and change nothing; "
            "raise data.max_length if their answers are cut off"
        )
