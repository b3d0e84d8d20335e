"""What a transformers model's forward gets of a batch."""

from torch import Tensor

from lorasmith.data import Batch
from lorasmith.models.packed_attention import segment_mask


def model_inputs(batch: Batch) -> dict[str, Tensor]:
    """Token ids, and of a packed batch the segments, of a padded one the mask."""
    arguments = {"input_ids": batch.input_ids}
    if batch.cu_seqlens is not None:
        arguments["attention_mask"] = segment_mask(batch.cu_seqlens)
    elif batch.attention_mask is not None:
        arguments["attention_mask"] = batch.attention_mask
    if batch.position_ids is not None:
        arguments["position_ids"] = batch.position_ids
    return arguments
