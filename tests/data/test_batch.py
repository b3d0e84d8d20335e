import torch

from lorasmith.data import Example
from lorasmith.data.batch import concatenate, pad

EXAMPLES = [Example([5, 6, 7], [5, 6, 7]), Example([8, 9], [-100, 9]), Example([4], [4])]


def test_a_padded_batch_masks_its_padding_and_learns_nothing_from_it():
    batch = pad(EXAMPLES, pad_token_id=3)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, 3], [4, 3, 3]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0]]
    assert batch.labels.tolist() == [[-100, 6, 7], [-100, 9, -100], [-100, -100, -100]]
    assert (batch.position_ids, batch.cu_seqlens) == (None, None)


def test_a_padding_token_inside_an_example_is_still_learned():
    # models whose padding token is their end token would never learn to stop
    batch = pad([Example([5, 3], [5, 3]), Example([5, 6, 3], [5, 6, 3])], pad_token_id=3)
    assert batch.labels.tolist() == [[-100, 3, -100], [-100, 6, 3]]
    assert batch.attention_mask.tolist() == [[1, 1, 0], [1, 1, 1]]


def test_a_concatenated_batch_restarts_positions_and_predicts_nothing_across_segments():
    batch = concatenate(EXAMPLES)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 4]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0]]
    assert batch.cu_seqlens.tolist() == [0, 3, 5, 6] and batch.cu_seqlens.dtype == torch.int32
    assert batch.labels.tolist() == [[-100, 6, 7, -100, 9, -100]]
    assert batch.attention_mask is None


def test_supervised_counts_the_targets_that_the_loss_sees_after_its_shift():
    for batch in (pad(EXAMPLES, 3), concatenate(EXAMPLES)):
        assert batch.supervised == 3 == int((batch.labels[:, 1:] != -100).sum())


def test_making_a_batch_leaves_the_examples_as_they_are():
    shared = [5, 6, 7]
    example = Example(shared, shared)
    concatenate([example])
    pad([example], 0)
    assert example == Example([5, 6, 7], [5, 6, 7])


def test_classes_are_one_a_row():
    batch = pad([Example([5, 6], 1), Example([7], 0)], None)
    assert batch.labels.tolist() == [1, 0] and batch.labels.dtype == torch.int64
    assert batch.supervised == 2


def test_token_types_are_padded_with_zeros():
    batch = pad([Example([5, 6, 7], 1, [0, 1, 1]), Example([7], 0)], None)
    assert batch.model_inputs()["token_type_ids"].tolist() == [[0, 1, 1], [0, 0, 0]]
    assert batch.to("meta").token_type_ids.device.type == "meta"
    assert "token_type_ids" not in pad(EXAMPLES, 3).model_inputs()


def test_examples_that_differ_in_token_types_alone_have_other_digests():
    # or a run could be resumed on other data
    assert Example([5, 6], 1, [0, 1]).digest() != Example([5, 6], 1, [0, 0]).digest()


def test_to_moves_every_tensor_but_the_bounds_which_attention_reads_on_the_cpu():
    for batch in (pad(EXAMPLES, 3), concatenate(EXAMPLES)):
        moved = batch.to("meta")
        tensors = [moved.input_ids, moved.labels, moved.attention_mask, moved.position_ids]
        assert {tensor.device.type for tensor in tensors if tensor is not None} == {"meta"}
        assert moved.cu_seqlens is batch.cu_seqlens
        assert moved.supervised == batch.supervised
