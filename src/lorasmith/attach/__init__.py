"""The only code that edits module trees: attaching, activating, merging, saving and loading adapters."""

from lorasmith.attach.adapted import Adapted
from lorasmith.attach.adapters import KEY_PREFIX, PROMPT_KEY, Adapters, adapters_of
from lorasmith.attach.class_names import CLASS_NAMES_FILE, class_names, name_classes_, read_class_names
from lorasmith.attach.files import (
    WEIGHTS_FILE,
    adapter_state,
    load_adapter,
    load_adapter_state,
    read_adapter_tensors,
    save_adapter,
)
from lorasmith.attach.merging import make_dense, merge_and_unload, merge_in_place, unload, unmerge
from lorasmith.attach.placing import attach, is_taken_by_torch
from lorasmith.attach.saved_module import SavedModule
from lorasmith.attach.selection import ALL_LINEAR, base_modules

__all__ = [
    "ALL_LINEAR",
    "CLASS_NAMES_FILE",
    "KEY_PREFIX",
    "PROMPT_KEY",
    "WEIGHTS_FILE",
    "Adapted",
    "Adapters",
    "SavedModule",
    "adapter_state",
    "adapters_of",
    "attach",
    "base_modules",
    "class_names",
    "is_taken_by_torch",
    "load_adapter",
    "load_adapter_state",
    "make_dense",
    "merge_and_unload",
    "merge_in_place",
    "name_classes_",
    "read_adapter_tensors",
    "read_class_names",
    "save_adapter",
    "unload",
    "unmerge",
]
