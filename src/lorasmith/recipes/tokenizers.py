"""The tokenizer of a model or adapter folder, and what a recipe changes of it."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lorasmith.doctor.job.vocabulary import embedding_rows
from lorasmith.errors import ModelError, RecipeError
from lorasmith.recipes.sections import TokenizerSection

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
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"the tokenizer in {folder} cannot be loaded: {reason}") from error


def extend_tokenizer_(tokenizer: PreTrainedTokenizerBase, section: TokenizerSection) -> int:
    """Puts the recipe's changes into tokenizer, in place; returns how many tokens it did not know before."""
    added = tokenizer.add_tokens(section.add_tokens)
    added += tokenizer.add_tokens(section.add_special_tokens, special_tokens=True)
    if section.pad_token is not None:
        if section.pad_token not in tokenizer.get_vocab():
            raise RecipeError(f"tokenizer.pad_token={section.pad_token!r} is no token; list it in add_special_tokens")
        tokenizer.pad_token = section.pad_token
    if section.chat_template is not None:
        try:
            tokenizer.chat_template = Path(section.chat_template).read_text(encoding="utf-8")
        except OSError as error:
            raise RecipeError(
                f"tokenizer.chat_template={section.chat_template} cannot be read: {error.strerror}"
            ) from error
    return int(added)


def fit_embeddings_(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Grows the embeddings, and a separate head, to the tokenizer's size where they are smaller; returns the new rows.

    New rows start at random around the mean of the old ones. A larger embedding, padded for speed, stays as it is.
    """
    rows = embedding_rows(model)
    if len(tokenizer) <= rows:
        return 0
    # the mean is taken of weights, which a skeleton has not
    model.resize_token_embeddings(len(tokenizer), mean_resizing=model.device.type != "meta")
    return len(tokenizer) - rows
