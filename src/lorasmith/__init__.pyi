"""What the package offers, and the module of each: read by type checkers, and by __init__.py at run time."""

from .attach import adapters_of, merge_and_unload, unload
from .compat.absent import why_absent as why_absent
from .compat.auto import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    AutoPeftModelForFeatureExtraction,
    AutoPeftModelForQuestionAnswering,
    AutoPeftModelForSeq2SeqLM,
    AutoPeftModelForSequenceClassification,
    AutoPeftModelForTokenClassification,
)
from .compat.base_state import get_base_model_state_dict, set_base_model_state_dict
from .compat.converting import convert_to_lora, save_as_lora
from .compat.eva import get_eva_state_dict, initialize_lora_eva_weights
from .compat.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from .compat.injecting import inject_adapter_in_model
from .compat.kbit import prepare_model_for_int8_training, prepare_model_for_kbit_training
from .compat.loftq import replace_lora_weights_loftq
from .compat.mappings import (
    MODEL_TYPE_TO_PEFT_MODEL_MAPPING,
    PEFT_TYPE_TO_CONFIG_MAPPING,
    NoMatchingPeftModuleError,
    PeftError,
    PeftWarning,
)
from .compat.optimizers import create_lorafa_optimizer, create_loraplus_optimizer
from .compat.peft_config import (
    PeftConfig,
    get_peft_config,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from .compat.peft_model import PeftModel
from .compat.precision import cast_mixed_precision_params
from .compat.shira import initialize_shira_masks
from .compat.status import get_layer_status, get_model_status
from .compat.task_models import (
    PeftMixedModel,
    PeftModelForCausalLM,
    PeftModelForFeatureExtraction,
    PeftModelForQuestionAnswering,
    PeftModelForSeq2SeqLM,
    PeftModelForSequenceClassification,
    PeftModelForTokenClassification,
    get_peft_model,
)
from .errors import LorasmithError
from .methods import PeftType, TaskType
from .methods.adalora import AdaLoraConfig
from .methods.bitfit import BitFitConfig
from .methods.boft import BOFTConfig
from .methods.bottleneck import BottleneckConfig
from .methods.config import PromptLearningConfig
from .methods.full import FullConfig
from .methods.ia3 import IA3Config
from .methods.inits import EvaConfig, LoftQConfig
from .methods.ln_tuning import LNTuningConfig
from .methods.loha import LoHaConfig
from .methods.lokr import LoKrConfig
from .methods.lora import LoraConfig
from .methods.oft import OFTConfig
from .methods.p_tuning import PromptEncoderConfig, PromptEncoderReparameterizationType
from .methods.prefix_tuning import PrefixTuningConfig
from .methods.prompt_tuning import PromptTuningConfig, PromptTuningInit
from .methods.shira import ShiraConfig
from .methods.trainable_tokens import TrainableTokensConfig
from .methods.vera import VeraConfig
from .models.bitsandbytes_config import BitsAndBytesConfig
from .models.load import load
from .models.quantization_config import QuantizationConfig
from .models.save import save_quantized
from .quantized import Scheme, count_parameters, quantize_module
from .recipes.train import train
from .recipes.train_together import train_together

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

__version__: str
