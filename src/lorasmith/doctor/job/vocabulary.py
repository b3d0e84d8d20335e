"""Does every token have a row in the embedding?"""

from collections.abc import Iterator
from typing import Any, cast

from torch import nn

from lorasmith.doctor.finding import Finding, error, warning
from lorasmith.doctor.job.registry import Job, job_checks


@job_checks.register("vocabulary")
def vocabulary(job: Job) -> Iterator[Finding]:
    """No token id of the data, and none of the tokenizer, lies beyond the embedding's rows."""
    rows = embedding_rows(job.model)
    largest = max(max(example.input_ids) for example in job.examples)
    if largest >= rows:
        yield error(
            f"the data has token {largest}, the model's embedding only {rows} rows: tokenizer and model do not belong "
            "together; use the model's own tokenizer, or add tokens with tokenizer.add_tokens"
        )
    elif len(job.tokenizer) > rows:
        yield warning(
            f"the tokenizer knows {len(job.tokenizer)} tokens, the model's embedding has {rows} rows; "
            "the training data uses none of those beyond, other text may"
        )


@job_checks.register("new rows")
def new_rows(job: Job) -> Iterator[Finding]:
    """Rows that were added for new tokens train, or nothing is learned of these tokens."""
    embedding: Any = cast(Any, job.model).get_input_embeddings()
    if job.new_rows and not any(parameter.requires_grad for parameter in embedding.parameters()):
        yield warning(
            f"{job.new_rows} tokens are new and their embeddings stay as they were drawn; to train them, list the "
            "embedding and the head in method.modules_to_save, or their ids in method.trainable_token_indices"
        )


def embedding_rows(model: nn.Module) -> int:
    """Rows of the input embedding of a transformers model, whatever stores or wraps it."""
    embedding: Any = cast(Any, model).get_input_embeddings()
    return int(embedding.num_embeddings)
