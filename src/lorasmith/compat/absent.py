"""What PEFT exports and lorasmith does not, and why: one line for whoever imports it."""

from lorasmith.methods import methods

_TUNER = "it is the class that PEFT places a method with; here one wrapper serves every method: use get_peft_model"
_POSTPROCESS = "soft prompts enter at the backbone here, so no family of models needs a function of its own"

# name in peft 0.21.2 -> why there is no such thing
_REASONS = {
    "PEFT_TYPE_TO_TUNER_MAPPING": _TUNER,
    "PEFT_TYPE_TO_MIXED_MODEL_MAPPING": _TUNER,
    "TRANSFORMERS_MODELS_TO_PREFIX_TUNING_POSTPROCESS_MAPPING": _POSTPROCESS,
    "bloom_model_postprocess_past_key_value": _POSTPROCESS,
    "LoraRuntimeConfig": "adapters are not moved between devices while they act, so there is nothing to set",
    "PromptEmbedding": "read a soft prompt's vectors with get_peft_model_state_dict",
    "PromptEncoder": "read a soft prompt's vectors with get_peft_model_state_dict",
    "PrefixEncoder": "read a soft prompt's vectors with get_peft_model_state_dict",
    "CPTEmbedding": "read a soft prompt's vectors with get_peft_model_state_dict",
    "CartridgeEncoder": "read a soft prompt's vectors with get_peft_model_state_dict",
    "compose_cartridge_adapters": "cartridges are not built",
    "initialize_kv_prefix_from_past_key_values": "prefixes start at random or from a file",
    "initialize_kv_prefix_from_text": "prefixes start at random or from a file",
    "prompt_embeddings_from_past_key_values": "prefixes start at random or from a file",
    "create_arrow_model": "routing between adapters by token (Arrow) is not built",
    "find_kappa_target_modules": "choosing target modules by their condition number is not built; name them",
    "preprocess_loraga": "LoRA-GA's start is not built; init_lora_weights has others",
    "LoraGAConfig": "LoRA-GA's start is not built; init_lora_weights has others",
    "shift_tokens_right": "every sequence-to-sequence model of transformers shifts its labels itself",
}
# methods and variants of PEFT, by the class of their settings or of their tuner
_METHODS = {
    *("AdaLora", "Adamss", "AdaptionPrompt", "Arrow", "BOFT", "BdLora", "Beft", "C3A", "CPT", "Cartridge", "Deft"),
    *("Delora", "FourierFT", "Frod", "Glora", "Gralora", "HRA", "Hira", "IA3", "Kasa", "LNTuning", "Lily", "LoHa"),
    *("LoKr", "Lora", "Miss", "Monteclora", "MultitaskPromptTuning", "OFT", "OSF", "Peanut", "Poly", "PrefixTuning"),
    *("PromptEncoder", "PromptTuning", "Psoft", "Pvera", "RandLora", "Road", "Shadow", "Shira", "Supertuning"),
    *("TinyLora", "TrainableTokens", "UniLora", "VBLoRA", "Velora", "Vera", "WaveFT", "XLora"),
}
# companions of a method's settings
_COMPANIONS = {
    "MultitaskPromptTuningInit": "MultitaskPromptTuning",
    "PromptEncoderReparameterizationType": "PromptEncoder",
}


def why_absent(name: str) -> str | None:
    """Why lorasmith has no such name, None for one that PEFT has not either."""
    if name in _REASONS:
        return _REASONS[name]
    if name.endswith("Model") and name.removesuffix("Model") in _METHODS:
        return _TUNER
    method = _COMPANIONS.get(name) or (name.removesuffix("Config") if name.endswith("Config") else None)
    return f"the method is not built; built are {', '.join(methods.names())}" if method in _METHODS else None
