"""The stream of micro-batches: complete, bounded, and the same wherever it is taken up."""

import json
import os
import subprocess
import sys
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorasmith.data import EncodeSettings, Example, Loader, encode, read
from lorasmith.errors import DataError

MAX_LENGTH = 12
LAYOUTS = {
    "packed": {"packing": True, "padding_free": True},
    "concatenated": {"packing": False, "padding_free": True},
    "padded": {"packing": False, "padding_free": False},
}


def examples_of(lengths):
    """Examples whose every token is unique, so that a token says where it comes from."""
    examples, next_token = [], 1
    for length in lengths:
        ids = list(range(next_token, next_token + length))
        examples.append(Example(ids, ids))
        next_token += length
    return examples


def loader_of(lengths, layout, batch_size=3, seed=0, **others):
    return Loader(
        examples_of(lengths),
        batch_size,
        seed=seed,
        max_length=MAX_LENGTH,
        pad_token_id=None,
        **LAYOUTS[layout],
        **others,
    )


def tokens_of(batch):
    if batch.attention_mask is None:
        return batch.input_ids[0].tolist()
    return batch.input_ids[batch.attention_mask.bool()].tolist()


def tensors_of(batch):
    return [
        None if tensor is None else tensor.tolist()
        for tensor in (batch.input_ids, batch.labels, batch.attention_mask, batch.position_ids, batch.cu_seqlens)
    ] + [batch.supervised]


def taken(loader, count):
    return [tensors_of(batch) for batch in islice(loader, count)]


some_lengths = st.lists(st.integers(1, MAX_LENGTH), min_size=1, max_size=60)
some_layout = st.sampled_from(sorted(LAYOUTS))
some_seed = st.integers(0, 5)
some_size = st.integers(1, 5)


@given(some_lengths, some_layout, some_size, some_seed)
@settings(deadline=None)
def test_every_token_comes_exactly_once_an_epoch(lengths, layout, batch_size, seed):
    loader = loader_of(lengths, layout, batch_size, seed)
    stream = iter(loader)
    for epoch in range(2):
        tokens = [token for batch in islice(stream, loader.epoch_batches(epoch)) for token in tokens_of(batch)]
        assert sorted(tokens) == list(range(1, sum(lengths) + 1))
    tokens = [token for batch in loader.one_pass() for token in tokens_of(batch)]
    assert sorted(tokens) == list(range(1, sum(lengths) + 1))


@given(some_lengths, some_layout, some_size, some_seed, st.integers(0, 40))
@settings(deadline=None)
def test_a_resumed_stream_equals_an_uninterrupted_one(lengths, layout, batch_size, seed, position):
    straight = taken(loader_of(lengths, layout, batch_size, seed), position + 8)
    first = loader_of(lengths, layout, batch_size, seed)
    assert taken(first, position) == straight[:position]
    # through JSON, as a checkpoint keeps it
    state = json.loads(json.dumps(first.state_dict()))
    resumed = loader_of(lengths, layout, batch_size, seed)
    resumed.load_state_dict(state)
    assert taken(resumed, 8) == straight[position:]


@given(some_lengths, st.sampled_from(["packed", "concatenated"]), some_size, some_seed)
@settings(deadline=None)
def test_segments_are_whole_examples_with_positions_from_zero_and_no_first_label(lengths, layout, batch_size, seed):
    loader = loader_of(lengths, layout, batch_size, seed)
    whole = {tuple(example.input_ids) for example in loader.examples}
    for batch in loader.one_pass():
        bounds = batch.cu_seqlens.tolist()
        assert (bounds[0], bounds[-1]) == (0, batch.input_ids.shape[1])
        for start, end in pairwise(bounds):
            assert tuple(batch.input_ids[0, start:end].tolist()) in whole
            assert batch.position_ids[0, start:end].tolist() == list(range(end - start))
            assert batch.labels[0, start] == -100
        assert batch.supervised == int((batch.labels[:, 1:] != -100).sum())


@given(some_lengths, some_size, some_seed)
@settings(deadline=None)
def test_a_packed_micro_batch_holds_at_most_its_packs_of_max_length(lengths, batch_size, seed):
    loader = loader_of(lengths, "packed", batch_size, seed)
    for batch in islice(loader, loader.epoch_batches()):
        assert batch.input_ids.shape[1] <= batch_size * MAX_LENGTH


@given(some_lengths, some_size, some_seed)
@settings(deadline=None)
def test_rows_are_as_many_as_the_batch_size_but_for_one_batch_an_epoch(lengths, batch_size, seed):
    loader = loader_of(lengths, "padded", batch_size, seed)
    rows = [batch.input_ids.shape[0] for batch in islice(loader, loader.epoch_batches())]
    assert sum(count != batch_size for count in rows) <= 1 and max(rows) <= batch_size


@pytest.mark.parametrize("layout", LAYOUTS)
def test_epochs_and_seeds_differ_in_order(layout):
    lengths = [3, 5, 2, 7, 4, 6, 1, 8] * 5
    stream = iter(loader_of(lengths, layout))
    count = loader_of(lengths, layout).epoch_batches()
    first, second = taken(stream, count), taken(stream, count)
    assert first != second
    assert first != taken(loader_of(lengths, layout, seed=1), count)


def test_without_shuffling_concatenated_examples_keep_their_order():
    loader = loader_of([2, 3, 1, 2], "concatenated", batch_size=2, shuffle=False)
    assert [tokens_of(batch) for batch in islice(loader, 2)] == [[1, 2, 3, 4, 5], [6, 7, 8]]


def test_a_pass_for_evaluation_is_always_the_same_and_does_not_move_the_stream():
    loader = loader_of([3, 5, 2, 7, 4] * 4, "padded")
    straight = taken(loader_of([3, 5, 2, 7, 4] * 4, "padded"), 6)
    begun = taken(loader, 3)
    passes = [[tensors_of(batch) for batch in loader.one_pass()] for _ in range(2)]
    assert passes[0] == passes[1]
    assert begun + taken(loader, 3) == straight


def test_grouping_by_length_leaves_little_padding():
    lengths = torch.randint(1, MAX_LENGTH + 1, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    loader = loader_of(lengths, "padded", batch_size=4)
    cells = sum(batch.input_ids.numel() for batch in islice(loader, loader.epoch_batches()))
    # random batches of 4 from lengths 1 to 12 waste about a third; sorted ones only where a length ends
    assert sum(lengths) / cells > 0.95


def test_the_epoch_is_that_of_the_last_batch():
    loader = loader_of([2] * 6, "concatenated", batch_size=3)
    epochs = [loader.epoch for _ in islice(loader, 5)]
    assert epochs == [0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    "changed", [{"lengths": [2, 3, 5]}, {"batch_size": 2}, {"seed": 1}, {"layout": "concatenated"}]
)
def test_a_position_is_refused_for_other_data_or_settings(changed):
    made_with = {"lengths": [2, 3, 4], "layout": "packed", "batch_size": 3, "seed": 0}
    state = loader_of(**made_with).state_dict()
    with pytest.raises(DataError, match="made with other data, batch size, packing or data seed"):
        loader_of(**made_with | changed).load_state_dict(state)


@pytest.mark.parametrize(
    ("examples", "arguments", "words"),
    [
        ([], {}, "there are no examples"),
        ([Example([], [])], {}, "an example has no tokens"),
        ([Example([1] * 13, [1] * 13)], {}, "13 tokens, more than max_length=12"),
        ([Example([1, 2], 0)], {}, "classification examples are padded"),
        ([Example([1, 2], [1, 2])], {"padding_free": False}, "set packing: false"),
        ([Example([1, 2], [1, 2])], {"batch_size": 0}, "batch_size=0 must be at least 1"),
    ],
)
def test_what_cannot_be_batched_is_refused(examples, arguments, words):
    defaults = {
        "batch_size": 1,
        "seed": 0,
        "packing": True,
        "max_length": MAX_LENGTH,
        "padding_free": True,
        "pad_token_id": 0,
    }
    with pytest.raises(DataError, match=words):
        Loader(examples, **defaults | arguments)


def test_real_instructions_fill_their_packs(shared, gpt2):
    records = read(shared / "alpaca_style" / "alpaca_en_demo.json")[:500]
    examples = encode(records, gpt2, EncodeSettings(max_length=512))
    loader = Loader(examples, 1, seed=0, packing=True, max_length=512, padding_free=True, pad_token_id=None)
    filled = [batch.input_ids.shape[1] / 512 for batch in islice(loader, loader.epoch_batches())]
    # first-fit decreasing leaves only the last packs part empty
    assert max(filled) <= 1 and sum(filled) / len(filled) > 0.95


ORDERS = """
from itertools import islice
from lorasmith.data import Example, Loader, mix, split
tokens = [[i, i % 7] for i in range(60)] + [[1] * (i % 9 + 1) for i in range(60)]
examples = [Example(ids, ids) for ids in tokens]
training, validation = split(mix([(examples, 1.5), (examples[:9], 0.5)], seed=3), 0.1, seed=4)
loader = Loader(training, 4, seed=5, packing=True, max_length=12, padding_free=True, pad_token_id=0)
print([batch.input_ids.tolist() for batch in islice(loader, 30)], [list(one.input_ids) for one in validation])
"""


def test_no_order_depends_on_pythons_hash_seed(capsys):
    exec(ORDERS, {})
    here = capsys.readouterr().out
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    source = str(Path(sys.modules["lorasmith"].__file__).parents[1])
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": source}
    there = subprocess.run(
        [sys.executable, "-c", ORDERS], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert here == there != ""
