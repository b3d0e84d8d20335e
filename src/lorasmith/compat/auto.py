"""Base model and adapter in one call: `AutoPeftModelFor...`."""

from pathlib import Path
from typing import Any, ClassVar

from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from lorasmith.attach import read_class_names
from lorasmith.compat.adapter_folder import adapter_folder
from lorasmith.compat.peft_model import PeftModel
from lorasmith.errors import AdapterError
from lorasmith.methods import config_from_fields, read_config_fields


class _AutoPeftModel:
    auto_class: ClassVar[Any]

    @classmethod
    def from_pretrained(
        cls, model_id: str | Path, adapter_name: str = "default", is_trainable: bool = False, **options: Any
    ) -> PeftModel:
        """The base that the adapter's config names, with the adapter attached; options go to the base's loading.

        The head of a classifier gets as many rows as the adapter names classes, unless options say otherwise.

        Raises AdapterError where the config names no base model.
        """
        folder = adapter_folder(
            model_id,
            revision=options.pop("revision", None),
            token=options.get("token"),
            local_files_only=options.get("local_files_only", False),
            subfolder=options.pop("subfolder", None),
        )
        config = config_from_fields(read_config_fields(folder))
        base = config.base_model_name_or_path
        if not base:
            raise AdapterError(
                f"{folder}/adapter_config.json: base_model_name_or_path is empty; load the base yourself and use "
                "PeftModel.from_pretrained"
            )
        names = read_class_names(folder)
        if names and not {"config", "num_labels", "id2label"} & set(options):
            options["num_labels"] = len(names)
        model = cls.auto_class.from_pretrained(base, revision=config.revision, **options)
        return PeftModel.from_pretrained(model, folder, adapter_name, is_trainable)


class AutoPeftModel(_AutoPeftModel):
    """An encoder or bare model with an adapter."""

    auto_class = AutoModel


class AutoPeftModelForCausalLM(_AutoPeftModel):
    """A causal language model with an adapter."""

    auto_class = AutoModelForCausalLM


class AutoPeftModelForSequenceClassification(_AutoPeftModel):
    """A sequence classifier with an adapter."""

    auto_class = AutoModelForSequenceClassification


class AutoPeftModelForSeq2SeqLM(_AutoPeftModel):
    """A sequence-to-sequence model with an adapter."""

    auto_class = AutoModelForSeq2SeqLM


class AutoPeftModelForTokenClassification(_AutoPeftModel):
    """A token classifier with an adapter."""

    auto_class = AutoModelForTokenClassification


class AutoPeftModelForQuestionAnswering(_AutoPeftModel):
    """A span predictor with an adapter."""

    auto_class = AutoModelForQuestionAnswering
