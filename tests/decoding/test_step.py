"""What a step is given comes apart into tensors and the rest, and what no replay could follow is refused."""

import pytest
import torch

from lorasmith.decoding import NotRecordable
from lorasmith.decoding.step import Inputs


def test_tensors_are_found_by_name_and_entry():
    full, sliding = torch.ones(1, 1, 1, 8), torch.ones(1, 1, 1, 4)
    inputs = Inputs({"input_ids": torch.ones(1, 1), "attention_mask": {"full": full, "sliding": sliding, "none": None}})
    assert set(inputs.tensors) == {("input_ids", None), ("attention_mask", "full"), ("attention_mask", "sliding")}


def test_kinds_differ_by_shape_type_and_all_that_is_no_tensor():
    ids = torch.ones(2, 1, dtype=torch.long)
    kinds = [
        Inputs(arguments).kind
        for arguments in (
            {"input_ids": ids},
            {"input_ids": ids[:1]},
            {"input_ids": ids.int()},
            {"input_ids": ids, "logits_to_keep": 1},
            {"input_ids": ids, "logits_to_keep": 2},
        )
    ]
    assert len(set(kinds)) == len(kinds)
    assert Inputs({"input_ids": ids + 5}).kind == kinds[0]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"attention_mask": torch.ones(1, 9)}, "a mask that grows with every token"),
        ({"attention_mask": object()}, "are given a object as attention_mask"),
        ({"rows": [torch.ones(1)]}, "are given a list as rows"),
    ],
)
def test_arguments_that_are_not_recordable(arguments, why):
    with pytest.raises(NotRecordable, match=why):
        Inputs(arguments)
