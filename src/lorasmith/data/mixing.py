"""Several sources in one training set, and the part of it that is held out."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from lorasmith.data.example import Example
from lorasmith.errors import DataError


def draws(sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Examples that each source gives to a mixture: weight is its number of passes, at least one example each."""
    for weight in weights:
        if not 0 < weight < float("inf"):
            raise DataError(f"weight={weight} of a data source must be a positive number; 1 takes every example once")
    return [max(1, round(size * weight)) for size, weight in zip(sizes, weights, strict=True)]


def mix(sources: Sequence[tuple[Sequence[Example], float]], seed: int) -> list[Example]:
    """The examples of all sources, each source as often as its weight says.

    Weight 1 takes every example once, 2 twice, 0.5 a half that seed chooses. The order is that of the sources: the
    loader shuffles. Raises DataError for a weight that is not positive and for a source without examples.
    """
    if not all(examples for examples, _ in sources):
        raise DataError("a data source has no examples left to mix; check its records and max_length, or remove it")
    counts = draws([len(examples) for examples, _ in sources], [weight for _, weight in sources])
    mixed: list[Example] = []
    for number, ((examples, _), count) in enumerate(zip(sources, counts, strict=True)):
        passes, rest = divmod(count, len(examples))
        random = np.random.default_rng([seed % 2**63, number])
        chosen = sorted(random.permutation(len(examples))[:rest].tolist())
        mixed.extend(example for _ in range(passes) for example in examples)
        mixed.extend(examples[index] for index in chosen)
    return mixed


def split(examples: Sequence[Example], fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Training and validation examples; about fraction of them, and at least one, are for validation.

    Equal examples stay on one side. Which side depends on the content and the seed only, so adding or reordering
    records hardly moves the others. Raises DataError where fewer than two different examples are left to part.
    """
    if not 0 <= fraction < 1:
        raise DataError(f"validation_fraction={fraction} must be at least 0 and below 1; 0.05 holds out 5 %")
    if fraction == 0:
        return list(examples), []
    held_out = _held_out(examples, max(1, round(fraction * len(examples))), seed)
    validation = [example for example in examples if example.digest() in held_out]
    return [example for example in examples if example.digest() not in held_out], validation


def repeated(training: Sequence[Example], validation: Sequence[Example]) -> int:
    """Validation examples that also occur in training, for sources that were parted elsewhere."""
    known = {example.digest() for example in training}
    return sum(example.digest() in known for example in validation)


def _held_out(examples: Sequence[Example], wanted: int, seed: int) -> set[bytes]:
    """Digests of the groups of equal examples that are held out: whole groups, as many as fit into wanted."""
    sizes: dict[bytes, int] = {}
    for example in examples:
        digest = example.digest()
        sizes[digest] = sizes.get(digest, 0) + 1
    if len(sizes) < 2:
        raise DataError(
            f"{len(examples)} example(s) with {len(sizes)} different content(s) cannot be parted into training and "
            "validation; add data, name a validation file, or set validation_fraction: 0"
        )
    key = (seed % 2**63).to_bytes(8, "little")
    ranked = sorted(sizes, key=lambda digest: blake2b(digest, key=key, digest_size=16).digest())
    chosen: set[bytes] = set()
    room = wanted
    for digest in ranked[:-1]:
        if sizes[digest] <= room:
            chosen.add(digest)
            room -= sizes[digest]
    # every group is larger than the part asked for: the smallest one, so that there is a validation set at all
    return chosen or {min(ranked, key=lambda digest: sizes[digest])}
