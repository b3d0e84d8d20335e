"""PEFT's tables and base errors, filled with what there is here."""

from lorasmith.compat.peft_model import WRAPPERS, PeftModel
from lorasmith.errors import AttachError, LorasmithError
from lorasmith.methods import AdapterConfig, methods

# peft_type -> config class, of every method
PEFT_TYPE_TO_CONFIG_MAPPING: dict[str, type[AdapterConfig]] = {
    method.peft_type: method.config_class for _, method in methods.items()
}
# task_type -> wrapper
MODEL_TYPE_TO_PEFT_MODEL_MAPPING: dict[str, type[PeftModel]] = WRAPPERS

PeftError = LorasmithError
NoMatchingPeftModuleError = AttachError


class PeftWarning(UserWarning):
    """Named so that filters for it can be written; lorasmith logs what it has to say."""
