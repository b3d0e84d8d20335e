"""The tokenizer that lies in a folder."""

from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lorasmith.errors import ModelError, reason

# one of them lies in every folder that a tokenizer was saved in
_MARKS = ("tokenizer_config.json", "tokenizer.json", "vocab.txt", "tokenizer.model", "vocab.json")


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer was saved in folder."""
    return any((folder / name).is_file() for name in _MARKS)


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer in folder; raises ModelError where there is none, or it cannot be read."""
    if not has_tokenizer(folder):
        raise ModelError(f"{folder} holds no tokenizer ({', '.join(_MARKS[:2])}, ...); copy the model's own there")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except StrictDataclassError as error:
        # the model's config is read to find the class of its tokenizer
        raise ModelError(f"{folder / 'config.json'} holds what no model can have: {reason(error)}") from error
    # the library of fast tokenizers raises plain Exceptions for files that it cannot read
    except Exception as error:
        raise ModelError(
            f"the tokenizer in {folder} cannot be loaded: {reason(error)}; download its files again"
        ) from error
