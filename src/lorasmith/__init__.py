"""lorasmith: parameter-efficient fine-tuning that tells the truth about what it did."""

from lorasmith.attach import adapters_of, merge_and_unload, unload
from lorasmith.compat.auto import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    AutoPeftModelForFeatureExtraction,
    AutoPeftModelForQuestionAnswering,
    AutoPeftModelForSeq2SeqLM,
    AutoPeftModelForSequenceClassification,
    AutoPeftModelForTokenClassification,
)
from lorasmith.compat.kbit import prepare_model_for_int8_training, prepare_model_for_kbit_training
from lorasmith.compat.peft_config import (
    PeftConfig,
    get_peft_config,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from lorasmith.compat.peft_model import PeftModel
from lorasmith.compat.task_models import (
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
from lorasmith.methods.bitfit import BitFitConfig
from lorasmith.methods.bottleneck import BottleneckConfig
from lorasmith.methods.full import FullConfig
from lorasmith.methods.ia3 import IA3Config
from lorasmith.methods.lora import LoraConfig
from lorasmith.methods.prompt_tuning import PromptTuningConfig, PromptTuningInit
from lorasmith.models.bitsandbytes_config import BitsAndBytesConfig
from lorasmith.models.load import load
from lorasmith.models.quantization_config import QuantizationConfig
from lorasmith.models.save import save_quantized
from lorasmith.quantized import Scheme, count_parameters, quantize_module
from lorasmith.recipes.train import train

__version__ = "0.1.0"

__all__ = [
    "AutoPeftModel",
    "AutoPeftModelForCausalLM",
    "AutoPeftModelForFeatureExtraction",
    "AutoPeftModelForQuestionAnswering",
    "AutoPeftModelForSeq2SeqLM",
    "AutoPeftModelForSequenceClassification",
    "AutoPeftModelForTokenClassification",
    "BitFitConfig",
    "BitsAndBytesConfig",
    "BottleneckConfig",
    "FullConfig",
    "IA3Config",
    "LoraConfig",
    "LorasmithError",
    "PeftConfig",
    "PeftModel",
    "PeftModelForCausalLM",
    "PeftModelForFeatureExtraction",
    "PeftModelForQuestionAnswering",
    "PeftModelForSeq2SeqLM",
    "PeftModelForSequenceClassification",
    "PeftModelForTokenClassification",
    "PeftType",
    "PromptTuningConfig",
    "PromptTuningInit",
    "QuantizationConfig",
    "Scheme",
    "TaskType",
    "adapters_of",
    "count_parameters",
    "get_peft_config",
    "get_peft_model",
    "get_peft_model_state_dict",
    "load",
    "merge_and_unload",
    "prepare_model_for_int8_training",
    "prepare_model_for_kbit_training",
    "quantize_module",
    "save_quantized",
    "set_peft_model_state_dict",
    "train",
    "unload",
]
