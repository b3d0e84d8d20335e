"""The names of methods and tasks as PEFT writes them into its files."""

from enum import StrEnum


class PeftType(StrEnum):
    """The methods that PEFT has too, by the name that stands in `adapter_config.json`."""

    LORA = "LORA"
    IA3 = "IA3"
    LOHA = "LOHA"
    LOKR = "LOKR"
    VERA = "VERA"
    ADALORA = "ADALORA"
    OFT = "OFT"
    BOFT = "BOFT"
    PROMPT_TUNING = "PROMPT_TUNING"
    P_TUNING = "P_TUNING"
    PREFIX_TUNING = "PREFIX_TUNING"
    TRAINABLE_TOKENS = "TRAINABLE_TOKENS"
    LN_TUNING = "LN_TUNING"
    SHIRA = "SHIRA"


class TaskType(StrEnum):
    """What an adapted model is for."""

    SEQ_CLS = "SEQ_CLS"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    CAUSAL_LM = "CAUSAL_LM"
    TOKEN_CLS = "TOKEN_CLS"
    QUESTION_ANS = "QUESTION_ANS"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"


# tasks whose head is new for every set of classes, and so is trained and saved with the adapter
CLASSIFICATION = (TaskType.SEQ_CLS, TaskType.TOKEN_CLS)
