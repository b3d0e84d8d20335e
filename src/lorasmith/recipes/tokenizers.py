"""What a recipe changes of a tokenizer, and embeddings that fit it."""

from pathlib import Path

from jinja2.exceptions import TemplateError, TemplateSyntaxError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorasmith.doctor.job.vocabulary import embedding_rows
from lorasmith.errors import RecipeError
from lorasmith.recipes.sections import TokenizerSection


def extend_tokenizer_(tokenizer: PreTrainedTokenizerBase, section: TokenizerSection) -> int:
    """Puts the recipe's changes into tokenizer, in place; returns how many tokens it did not know before."""
    added = tokenizer.add_tokens(section.add_tokens)
    added += tokenizer.add_tokens(section.add_special_tokens, special_tokens=True)
    if section.pad_token is not None:
        if section.pad_token not in tokenizer.get_vocab():
            raise RecipeError(f"tokenizer.pad_token={section.pad_token!r} is no token; list it in add_special_tokens")
        tokenizer.pad_token = section.pad_token
    if section.chat_template is not None:
        _put_template_(tokenizer, section.chat_template)
    return int(added)


def _put_template_(tokenizer: PreTrainedTokenizerBase, file: str) -> None:
    try:
        tokenizer.chat_template = Path(file).read_text(encoding="utf-8")
        tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False)
    except TemplateSyntaxError as error:
        raise RecipeError(f"tokenizer.chat_template={file}, line {error.lineno}: {error.message}; mend it") from error
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise RecipeError(f"tokenizer.chat_template={file} cannot be read: {why}; name a Jinja template") from error
    except (TemplateError, TypeError, ValueError):
        # it refuses this dialogue, and may take those of the data
        return


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
