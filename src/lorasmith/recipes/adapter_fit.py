"""Does an adapter fit its base, as far as the headers of both show?"""

import re
from pathlib import Path

from lorasmith.attach import WEIGHTS_FILE
from lorasmith.errors import AdapterError
from lorasmith.methods import AdapterConfig, read_config
from lorasmith.methods.lora import LoraConfig
from lorasmith.models.checkpoint import Checkpoint
from lorasmith.models.tensor_file import read_header

# the input side alone: added tokens change the output side of a head
_FACTOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_A\.weight")


def fitting_config(folder: Path, checkpoint: Checkpoint) -> AdapterConfig:
    """The config of the adapter in folder; AdapterError for a kind that is not built, or another width than the base's.

    Only what is sure is refused: modules that the base stores under another name, or quantized, are left to loading.
    """
    config = read_config(folder)
    # the pooled input of QA-LoRA is narrower than the base's by design
    pooled = config.qalora_group_size if isinstance(config, LoraConfig) and config.use_qalora else 1
    for name, tensor in read_header(folder / WEIGHTS_FILE).items():
        found = _FACTOR.fullmatch(name)
        base = checkpoint.tensors.get(f"{found['module']}.weight") if found else None
        if base is None or not base.is_floating_point() or len(base.shape) != 2 or len(tensor.shape) != 2:
            continue
        # GPT-2's layers are stored the other way round
        if tensor.shape[1] * pooled not in base.shape:
            raise AdapterError(
                f"{folder / WEIGHTS_FILE}: {name} has shape {list(tensor.shape)}, and the weight that it belongs to "
                f"{list(base.shape)} in {checkpoint.folder}; name the model that the adapter was trained on"
            )
    return config
