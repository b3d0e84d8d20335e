"""Loaders for training and scoring, packed where model and method allow it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorasmith.attach import adapters_of
from lorasmith.data import Example, Loader
from lorasmith.methods import method_of
from lorasmith.models.packed_attention import enable_packing
from lorasmith.recipes.recipe import Recipe


@dataclass(frozen=True)
class Layout:
    """How examples lie in a micro-batch, and a line that says why where it is not what was asked for."""

    packing: bool
    padding_free: bool
    note: str | None = None


@contextmanager
def own_attention(model: PreTrainedModel) -> Iterator[None]:
    """Gives model back the attention that it had before, also after an error; packing is for the work inside."""
    before = model.config._attn_implementation
    try:
        yield
    finally:
        if model.config._attn_implementation != before:
            model.set_attn_implementation(before)


def layout_of(model: PreTrainedModel, recipe: Recipe) -> Layout:
    """The layout for recipe on model, which is given packed attention, in place, where that is right for it."""
    if recipe.task == "classification":
        return Layout(packing=False, padding_free=False)
    book = adapters_of(model)
    whole = [name for name in book.active if not method_of(book.configs[name]).packs]
    if whole:
        kind = book.configs[whole[0]].METHOD
        reason: str | None = f"{kind} needs every example in a row of its own"
    else:
        reason = enable_packing(model)
    if reason is None:
        return Layout(recipe.data.packing, padding_free=True)
    return Layout(packing=False, padding_free=False, note=f"padded batches grouped by length, no packing: {reason}")


def training_loader(
    examples: list[Example], layout: Layout, recipe: Recipe, tokenizer: PreTrainedTokenizerBase
) -> Loader:
    """The endless stream of micro-batches to train on."""
    return Loader(
        examples,
        recipe.training.batch_size,
        seed=recipe.seed,
        packing=layout.packing,
        max_length=recipe.data.max_length,
        padding_free=layout.padding_free,
        pad_token_id=tokenizer.pad_token_id,
    )


def scoring_loader(
    examples: list[Example], layout: Layout, batch_size: int, tokenizer: PreTrainedTokenizerBase
) -> Loader:
    """A loader whose one_pass gives every example once, in order."""
    return Loader(
        examples,
        batch_size,
        seed=0,
        packing=False,
        max_length=max(len(example) for example in examples),
        padding_free=layout.padding_free,
        pad_token_id=tokenizer.pad_token_id,
        shuffle=False,
    )
