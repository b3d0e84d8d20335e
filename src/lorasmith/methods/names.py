"""The names of methods and tasks as PEFT writes them into its files."""

from enum import StrEnum


class PeftType(StrEnum):
    """Methods, by the name that stands in `adapter_config.json`; the last two are ours alone."""

    LORA = "LORA"
    IA3 = "IA3"
    PROMPT_TUNING = "PROMPT_TUNING"
    BOTTLENECK = "BOTTLENECK"
    BITFIT = "BITFIT"


class TaskType(StrEnum):
    """What an adapted model is for."""

    SEQ_CLS = "SEQ_CLS"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    CAUSAL_LM = "CAUSAL_LM"
    TOKEN_CLS = "TOKEN_CLS"
    QUESTION_ANS = "QUESTION_ANS"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"
