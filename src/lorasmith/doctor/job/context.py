"""Do the examples fit into the model's positions?"""

from collections.abc import Iterator

from torch import nn

from lorasmith.attach import adapters_of
from lorasmith.doctor.finding import Finding, error
from lorasmith.doctor.job.registry import Job, job_checks


@job_checks.register("context")
def context(job: Job) -> Iterator[Finding]:
    """No example, with the virtual tokens before it, is longer than the positions that the model was made for."""
    longest, virtual = max(len(example) for example in job.examples), _virtual_tokens(job.model)
    if job.context is None or longest + virtual <= job.context:
        return
    if virtual >= job.context:
        fix = f"lower method.num_virtual_tokens={virtual}"
    else:
        fix = f"set data.max_length={job.context - virtual}"
    beside = f" and {virtual} virtual ones before them" if virtual else ""
    yield error(f"the longest example has {longest} tokens{beside}, the model was made for {job.context}; {fix}")


def _virtual_tokens(model: nn.Module) -> int:
    prompted = adapters_of(model).prompted
    prompt = None if prompted is None else prompted.prompt
    return 0 if prompt is None else prompt.tokens
