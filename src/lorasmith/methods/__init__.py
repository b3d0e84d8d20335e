"""Methods of adapting a model, one file each."""

from lorasmith.methods.config import (
    CONFIG_FILE,
    AdapterConfig,
    LayeredConfig,
    PromptLearningConfig,
    TargetedConfig,
    read_config_fields,
)
from lorasmith.methods.layer import LayerSpec, block_spec, dense_weight, frozen_product, layer_spec, parameter_spec
from lorasmith.methods.matching import layer_number, matches, named, patterned
from lorasmith.methods.method import (
    INPUT_EMBEDDING,
    InputMethod,
    Method,
    Prefix,
    Prompt,
    SelectiveMethod,
    SiteMethod,
)
from lorasmith.methods.names import CLASSIFICATION, PeftType, TaskType
from lorasmith.methods.registry import config_from_fields, method_of, methods, read_config
from lorasmith.methods.site import BaseWeight, Constant, FactorPair, Site, Vector
from lorasmith.methods.training_part import TrainingPart

__all__ = [
    "CLASSIFICATION",
    "CONFIG_FILE",
    "INPUT_EMBEDDING",
    "AdapterConfig",
    "BaseWeight",
    "Constant",
    "FactorPair",
    "InputMethod",
    "LayerSpec",
    "LayeredConfig",
    "Method",
    "PeftType",
    "Prefix",
    "Prompt",
    "PromptLearningConfig",
    "SelectiveMethod",
    "Site",
    "SiteMethod",
    "TargetedConfig",
    "TaskType",
    "TrainingPart",
    "Vector",
    "block_spec",
    "config_from_fields",
    "dense_weight",
    "frozen_product",
    "layer_number",
    "layer_spec",
    "matches",
    "method_of",
    "methods",
    "named",
    "parameter_spec",
    "patterned",
    "read_config",
    "read_config_fields",
]
