"""Will the model learn to stop?"""

from collections.abc import Iterator

from lorasmith.data import IGNORED, Example
from lorasmith.doctor.finding import Finding, warning
from lorasmith.doctor.job.registry import Job, job_checks


@job_checks.register("stopping")
def stopping(job: Job) -> Iterator[Finding]:
    """Where answers are learned, a token that ends one is learned too."""
    answers = [example for example in job.examples if _is_answer(example)]
    if not answers:
        return
    ends = _end_tokens(job)
    if not ends:
        yield warning(
            "the tokenizer has no end-of-sequence token, so the tuned model will not know where to stop; "
            "set tokenizer.add_special_tokens or choose another tokenizer"
        )
    elif not any(ends & _learned(example) for example in answers):
        yield warning(
            f"no answer ends with {job.tokenizer.eos_token!r} among its learned tokens, so the tuned model will not "
            "stop by itself; end the chat template's assistant turn with it, inside the generation block"
        )


def _is_answer(example: Example) -> bool:
    """Whether some tokens, the prompt, are left out of the loss, and some are not."""
    return not isinstance(example.labels, int) and 0 < example.supervised < len(example) - 1


def _learned(example: Example) -> set[int]:
    # class ids have no tokens; _is_answer has filtered them out
    assert not isinstance(example.labels, int)
    return set(example.labels[1:]) - {IGNORED}


def _end_tokens(job: Job) -> set[int]:
    """Ids that end a text or a turn: eos, and special tokens that the tokenizer names as an end."""
    special = zip(job.tokenizer.all_special_tokens, job.tokenizer.all_special_ids)
    named = {number for token, number in special if any(word in token for word in ("end", "eot", "/s", "eos"))}
    eos = job.tokenizer.eos_token_id
    return named if eos is None else named | {eos}
