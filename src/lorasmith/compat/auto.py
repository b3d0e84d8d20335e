"""Base model and adapter in one call: `AutoPeftModel` and its siblings by task."""

from pathlib import Path
from typing import Any, ClassVar

import transformers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from lorasmith.attach import read_class_names
from lorasmith.compat.adapter_folder import adapter_folder
from lorasmith.compat.peft_model import PeftModel
from lorasmith.errors import AdapterError
from lorasmith.methods import AdapterConfig, TaskType, read_config

_BY_TASK: dict[str, Any] = {
    TaskType.CAUSAL_LM: AutoModelForCausalLM,
    TaskType.SEQ_CLS: AutoModelForSequenceClassification,
    TaskType.SEQ_2_SEQ_LM: AutoModelForSeq2SeqLM,
    TaskType.TOKEN_CLS: AutoModelForTokenClassification,
    TaskType.QUESTION_ANS: AutoModelForQuestionAnswering,
    TaskType.FEATURE_EXTRACTION: AutoModel,
}


class AutoPeftModel:
    """A base model with an adapter; the adapter's config says of which class the base is."""

    # the task of the siblings below, any where None
    task: ClassVar[TaskType | None] = None

    @classmethod
    def from_pretrained(
        cls, model_id: str | Path, adapter_name: str = "default", is_trainable: bool = False, **options: Any
    ) -> PeftModel:
        """The base that the adapter's config names, with the adapter attached; options go to the base's loading.

        The head of a classifier gets as many rows as the adapter names classes, unless options say otherwise.

        Raises AdapterError where the config names no base model, or another task than this class is for.
        """
        folder = adapter_folder(
            model_id,
            revision=options.pop("revision", None),
            token=options.get("token"),
            local_files_only=options.get("local_files_only", False),
            subfolder=options.pop("subfolder", None),
        )
        config = read_config(folder)
        base = config.base_model_name_or_path
        if not base:
            raise AdapterError(
                f"{folder}/adapter_config.json: base_model_name_or_path is empty; load the base yourself and use "
                "PeftModel.from_pretrained"
            )
        names = read_class_names(folder)
        if names and not {"config", "num_labels", "id2label"} & set(options):
            options["num_labels"] = len(names)
        model = cls._base_class(config).from_pretrained(base, revision=config.revision, **options)
        return PeftModel.from_pretrained(model, folder, adapter_name, is_trainable)

    @classmethod
    def _base_class(cls, config: AdapterConfig) -> Any:
        wanted = config.task_type or cls.task
        if wanted is None:
            return _named_class(config.auto_mapping or {})
        if cls.task not in (None, wanted):
            raise AdapterError(
                f"the adapter is for the task {wanted}, and {cls.__name__} for {cls.task}; use AutoPeftModel"
            )
        return _BY_TASK[wanted]


def _named_class(noted: dict[str, Any]) -> Any:
    """The class that auto_mapping notes: one of transformers', since a file must not choose what is imported."""
    name = str(noted.get("base_model_class", "AutoModel"))
    found = AutoModel if name == "AutoModel" else getattr(transformers, name, None)
    if found is not AutoModel and not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise AdapterError(
            f"auto_mapping names the class {name!r}, which is none of transformers' models; load the base yourself and "
            "use PeftModel.from_pretrained"
        )
    return found


class AutoPeftModelForCausalLM(AutoPeftModel):
    """A causal language model with an adapter."""

    task = TaskType.CAUSAL_LM


class AutoPeftModelForSequenceClassification(AutoPeftModel):
    """A sequence classifier with an adapter."""

    task = TaskType.SEQ_CLS


class AutoPeftModelForSeq2SeqLM(AutoPeftModel):
    """A sequence-to-sequence model with an adapter."""

    task = TaskType.SEQ_2_SEQ_LM


class AutoPeftModelForTokenClassification(AutoPeftModel):
    """A token classifier with an adapter."""

    task = TaskType.TOKEN_CLS


class AutoPeftModelForQuestionAnswering(AutoPeftModel):
    """A span predictor with an adapter."""

    task = TaskType.QUESTION_ANS


class AutoPeftModelForFeatureExtraction(AutoPeftModel):
    """An encoder with an adapter."""

    task = TaskType.FEATURE_EXTRACTION
