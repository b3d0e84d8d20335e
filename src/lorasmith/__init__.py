"""lorasmith: parameter-efficient fine-tuning that tells the truth about what it did."""

from lorasmith.attach import adapters_of, merge_and_unload, unload
from lorasmith.compat.absent import why_absent
from lorasmith.compat.auto import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    AutoPeftModelForFeatureExtraction,
    AutoPeftModelForQuestionAnswering,
    AutoPeftModelForSeq2SeqLM,
    AutoPeftModelForSequenceClassification,
    AutoPeftModelForTokenClassification,
)
from lorasmith.compat.base_state import get_base_model_state_dict, set_base_model_state_dict
from lorasmith.compat.converting import convert_to_lora, save_as_lora
from lorasmith.compat.eva import get_eva_state_dict, initialize_lora_eva_weights
from lorasmith.compat.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from lorasmith.compat.injecting import inject_adapter_in_model
from lorasmith.compat.kbit import prepare_model_for_int8_training, prepare_model_for_kbit_training
from lorasmith.compat.loftq import replace_lora_weights_loftq
from lorasmith.compat.mappings import (
    MODEL_TYPE_TO_PEFT_MODEL_MAPPING,
    PEFT_TYPE_TO_CONFIG_MAPPING,
    NoMatchingPeftModuleError,
    PeftError,
    PeftWarning,
)
from lorasmith.compat.optimizers import create_lorafa_optimizer, create_loraplus_optimizer
from lorasmith.compat.peft_config import (
    PeftConfig,
    get_peft_config,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from lorasmith.compat.peft_model import PeftModel
from lorasmith.compat.precision import cast_mixed_precision_params
from lorasmith.compat.shira import initialize_shira_masks
from lorasmith.compat.status import get_layer_status, get_model_status
from lorasmith.compat.task_models import (
    PeftMixedModel,
    PeftModelForCausalLM,
    PeftModelForFeatureExtraction,
    PeftModelForQuestionAnswering,
    PeftModelForSeq2SeqLM,
    PeftModelForSequenceClassification,
    PeftModelForTokenClassification,
    get_peft_model,
)
from lorasmith.errors import LorasmithError
from lorasmith.methods import PeftType, TaskType
from lorasmith.methods.adalora import AdaLoraConfig
from lorasmith.methods.bitfit import BitFitConfig
from lorasmith.methods.boft import BOFTConfig
from lorasmith.methods.bottleneck import BottleneckConfig
from lorasmith.methods.config import PromptLearningConfig
from lorasmith.methods.full import FullConfig
from lorasmith.methods.ia3 import IA3Config
from lorasmith.methods.inits import EvaConfig, LoftQConfig
from lorasmith.methods.ln_tuning import LNTuningConfig
from lorasmith.methods.loha import LoHaConfig
from lorasmith.methods.lokr import LoKrConfig
from lorasmith.methods.lora import LoraConfig
from lorasmith.methods.oft import OFTConfig
from lorasmith.methods.p_tuning import PromptEncoderConfig, PromptEncoderReparameterizationType
from lorasmith.methods.prefix_tuning import PrefixTuningConfig
from lorasmith.methods.prompt_tuning import PromptTuningConfig, PromptTuningInit
from lorasmith.methods.shira import ShiraConfig
from lorasmith.methods.trainable_tokens import TrainableTokensConfig
from lorasmith.methods.vera import VeraConfig
from lorasmith.models.bitsandbytes_config import BitsAndBytesConfig
from lorasmith.models.load import load
from lorasmith.models.quantization_config import QuantizationConfig
from lorasmith.models.save import save_quantized
from lorasmith.quantized import Scheme, count_parameters, quantize_module
from lorasmith.recipes.train import train
from lorasmith.recipes.train_together import train_together
from lorasmith.version import VERSION

__version__ = VERSION

__all__ = [
    "MODEL_TYPE_TO_PEFT_MODEL_MAPPING",
    "PEFT_TYPE_TO_CONFIG_MAPPING",
    "AdaLoraConfig",
    "AutoPeftModel",
    "AutoPeftModelForCausalLM",
    "AutoPeftModelForFeatureExtraction",
    "AutoPeftModelForQuestionAnswering",
    "AutoPeftModelForSeq2SeqLM",
    "AutoPeftModelForSequenceClassification",
    "AutoPeftModelForTokenClassification",
    "BOFTConfig",
    "BitFitConfig",
    "BitsAndBytesConfig",
    "BottleneckConfig",
    "EvaConfig",
    "FullConfig",
    "IA3Config",
    "LNTuningConfig",
    "LoHaConfig",
    "LoKrConfig",
    "LoftQConfig",
    "LoraConfig",
    "LorasmithError",
    "NoMatchingPeftModuleError",
    "OFTConfig",
    "PeftConfig",
    "PeftError",
    "PeftMixedModel",
    "PeftModel",
    "PeftModelForCausalLM",
    "PeftModelForFeatureExtraction",
    "PeftModelForQuestionAnswering",
    "PeftModelForSeq2SeqLM",
    "PeftModelForSequenceClassification",
    "PeftModelForTokenClassification",
    "PeftType",
    "PeftWarning",
    "PrefixTuningConfig",
    "PromptEncoderConfig",
    "PromptEncoderReparameterizationType",
    "PromptLearningConfig",
    "PromptTuningConfig",
    "PromptTuningInit",
    "QuantizationConfig",
    "Scheme",
    "ShiraConfig",
    "TaskType",
    "TrainableTokensConfig",
    "VeraConfig",
    "adapters_of",
    "cast_mixed_precision_params",
    "convert_to_lora",
    "count_parameters",
    "create_lorafa_optimizer",
    "create_loraplus_optimizer",
    "get_base_model_state_dict",
    "get_eva_state_dict",
    "get_layer_status",
    "get_model_status",
    "get_peft_config",
    "get_peft_model",
    "get_peft_model_state_dict",
    "hotswap_adapter",
    "initialize_lora_eva_weights",
    "initialize_shira_masks",
    "inject_adapter_in_model",
    "load",
    "load_peft_weights",
    "merge_and_unload",
    "prepare_model_for_compiled_hotswap",
    "prepare_model_for_int8_training",
    "prepare_model_for_kbit_training",
    "quantize_module",
    "replace_lora_weights_loftq",
    "save_as_lora",
    "save_quantized",
    "set_base_model_state_dict",
    "set_peft_model_state_dict",
    "train",
    "train_together",
    "unload",
]


def __getattr__(name: str) -> object:
    """One line for a name that PEFT has and lorasmith has not: what it is not, and what to use."""
    reason = why_absent(name)
    if reason is not None:
        raise ImportError(f"lorasmith has no {name}: {reason} (docs/peft-names.md)")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
