"""`initialize_shira_masks`: the places of a SHiRA that chooses them by data, named as PEFT names EVA's function."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from lorasmith.attach import adapters_of
from lorasmith.attach.weight_gradients import begin_at_gradients_
from lorasmith.compat.batches import moved
from lorasmith.compat.peft_model import bare_model
from lorasmith.errors import AttachError


def initialize_shira_masks(
    model: nn.Module,
    dataloader: Iterable[Any],
    forward_fn: Callable[[Any, Any], Any] | None = None,
    adapter_name: str = "default",
) -> None:
    """Choose the places that an adapter with mask_type "gradient" or "snip" trains, by all batches of dataloader.

    A batch is a mapping, labels among it, that the model is called with, or what forward_fn(model, batch) takes; the
    loss is the output or its `loss`. model is a PeftModel or the model that something was attached to. The bare base
    runs, in evaluation mode, once over the data for every 2 GiB of f32 gradients.
    Raises AttachError for an adapter that waits for no data and for data without a loss.
    """
    base = bare_model(model)
    book = adapters_of(base)
    if not any(site.needs_data for _, site in book.sites(adapter_name)):
        raise AttachError(
            f"adapter {adapter_name!r} waits for no data; attach a ShiraConfig with mask_type 'gradient' or 'snip'"
        )
    forward = forward_fn or (lambda model, batch: model(**batch))
    begin_at_gradients_(book, adapter_name, dataloader, lambda batch: _loss(forward(base, moved(batch, base))))


def _loss(output: Any) -> Tensor:
    loss = output if isinstance(output, Tensor) else getattr(output, "loss", None)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise AttachError(
            "the model gives no loss for a batch; put labels into it, or let forward_fn(model, batch) return the loss"
        )
    return loss
