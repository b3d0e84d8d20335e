"""The wrapper by task, and the function that makes one."""

from torch import nn

from lorasmith.compat.peft_model import PeftModel
from lorasmith.errors import AttachError
from lorasmith.methods import AdapterConfig


class PeftModelForCausalLM(PeftModel, task="CAUSAL_LM"):
    """A causal language model with adapters."""


class PeftModelForSequenceClassification(PeftModel, task="SEQ_CLS"):
    """A sequence classifier with adapters; its head trains too."""


class PeftModelForSeq2SeqLM(PeftModel, task="SEQ_2_SEQ_LM"):
    """A sequence-to-sequence model with adapters."""


class PeftModelForTokenClassification(PeftModel, task="TOKEN_CLS"):
    """A token classifier with adapters; its head trains too."""


class PeftModelForQuestionAnswering(PeftModel, task="QUESTION_ANS"):
    """A span predictor with adapters."""


class PeftModelForFeatureExtraction(PeftModel, task="FEATURE_EXTRACTION"):
    """An encoder with adapters."""


class PeftMixedModel(PeftModel):
    """A model whose adapters are of several methods and act together.

    Every wrapper allows that, but for soft prompts; this one is for those who ask for it by name, with mixed=True.
    """


def get_peft_model(
    model: nn.Module,
    peft_config: AdapterConfig,
    adapter_name: str = "default",
    mixed: bool = False,
    autocast_adapter_dtype: bool = True,
    revision: str | None = None,
    low_cpu_mem_usage: bool = False,
) -> PeftModel:
    """model, adapted in place and wrapped; everything but the adapter is frozen.

    mixed gives a PeftMixedModel. low_cpu_mem_usage changes nothing: an adapter's tensors are made once, in place.
    Raises AttachError for what is no config of ours.
    """
    if not isinstance(peft_config, AdapterConfig):
        kind = f"{type(peft_config).__module__}.{type(peft_config).__name__}"
        raise AttachError(f"peft_config is a {kind}; give a config of lorasmith's, such as LoraConfig(r=8)")
    if revision is not None:
        peft_config.revision = revision
    wrapper = PeftMixedModel if mixed else PeftModel.for_task(peft_config)
    return wrapper(model, peft_config, adapter_name, autocast_adapter_dtype)
