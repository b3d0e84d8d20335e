"""The only code that edits module trees: attaching, activating, merging, saving and loading adapters."""

from lorasmith.attach.adapted import Adapted
from lorasmith.attach.adapters import KEY_PREFIX, PROMPT_KEY, Adapters, adapters_of
from lorasmith.attach.assignment import BASE
from lorasmith.attach.card import CARD, CardFacts, split_card, write_card
from lorasmith.attach.class_names import CLASS_NAMES_FILE, class_names, name_classes_, read_class_names
from lorasmith.attach.composing import (
    COMBINATION_TYPES,
    Composition,
    MajoritySign,
    Part,
    add_weighted,
    compose,
    distance_from_sum,
)
from lorasmith.attach.content import AdapterContent
from lorasmith.attach.converting import as_lora
from lorasmith.attach.files import (
    WEIGHTS_FILE,
    attach_content,
    content_of,
    load_adapter,
    read_adapter,
    read_adapter_tensors,
    read_tensor_file,
    save_adapter,
    write_adapter,
)
from lorasmith.attach.merging import (
    make_dense,
    merge_and_unload,
    merge_in_place,
    replace_and_unload,
    replaced,
    require_mergeable,
    unload,
    unmerge,
)
from lorasmith.attach.parts import PARTS
from lorasmith.attach.placing import attach, is_taken_by_torch
from lorasmith.attach.quantized_merge import (
    MergedSum,
    bare,
    compensated_layer,
    exact_layer,
    merged_sum,
    rounded_layer,
)
from lorasmith.attach.saved_module import SavedModule
from lorasmith.attach.selection import ALL_LINEAR, base_modules, select, shortest_names
from lorasmith.attach.state import adapter_state, load_adapter_state
from lorasmith.attach.status import TunerLayerStatus, TunerModelStatus, layer_status, model_status
from lorasmith.attach.swapping import swap_, widen_

__all__ = [
    "ALL_LINEAR",
    "BASE",
    "CARD",
    "CLASS_NAMES_FILE",
    "COMBINATION_TYPES",
    "KEY_PREFIX",
    "PARTS",
    "PROMPT_KEY",
    "WEIGHTS_FILE",
    "Adapted",
    "AdapterContent",
    "Adapters",
    "CardFacts",
    "Composition",
    "MajoritySign",
    "MergedSum",
    "Part",
    "SavedModule",
    "TunerLayerStatus",
    "TunerModelStatus",
    "adapter_state",
    "adapters_of",
    "add_weighted",
    "as_lora",
    "attach",
    "attach_content",
    "bare",
    "base_modules",
    "class_names",
    "compensated_layer",
    "compose",
    "content_of",
    "distance_from_sum",
    "exact_layer",
    "is_taken_by_torch",
    "layer_status",
    "load_adapter",
    "load_adapter_state",
    "make_dense",
    "merge_and_unload",
    "merge_in_place",
    "merged_sum",
    "model_status",
    "name_classes_",
    "read_adapter",
    "read_adapter_tensors",
    "read_class_names",
    "read_tensor_file",
    "replace_and_unload",
    "replaced",
    "require_mergeable",
    "rounded_layer",
    "save_adapter",
    "select",
    "shortest_names",
    "split_card",
    "swap_",
    "unload",
    "unmerge",
    "widen_",
    "write_adapter",
    "write_card",
]
