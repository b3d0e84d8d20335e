"""Does anything train, and not too much?"""

from collections.abc import Iterator

import torch

from lorasmith.doctor.finding import Finding, error, warning
from lorasmith.doctor.job.registry import Job, job_checks
from lorasmith.quantized import count_parameters

# Beyond this share an adapter is hardly one: most often an embedding in modules_to_save
LARGE_SHARE = 0.5


@job_checks.register("trainable")
def trainable(job: Job) -> Iterator[Finding]:
    """Some parameter requires a gradient, and the adapter is smaller than the model."""
    count = count_parameters(job.model)
    if count.trainable == 0:
        yield error("nothing would train: every parameter is frozen; attach an adapter, or check method.target_modules")
    elif count.trainable > LARGE_SHARE * count.total:
        share = 100 * count.trainable / count.total
        yield warning(
            f"{share:.0f} % of all parameters train, where adapters train a few: lower the size (such as r), leave "
            "whole modules out, or mean it, as full fine-tuning does"
        )


@job_checks.register("trained type")
def trained_type(job: Job) -> Iterator[Finding]:
    """No trained tensor is float16: small gradients underflow in it, and so does AdamW's epsilon."""
    trained = [(name, tensor) for name, tensor in job.model.named_parameters() if tensor.requires_grad]
    low = [name for name, tensor in trained if tensor.dtype is torch.float16]
    if low:
        yield error(f"{len(low)} trained tensors are float16 (first: {low[0]}); load the model with dtype bf16 or fp32")
