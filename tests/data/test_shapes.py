import pytest

from lorasmith.data.record import Record
from lorasmith.data.shapes import Completion, Dialogue, Labelled, Text, renamed, shape_of
from lorasmith.errors import DataError

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


def document(fields, shape=None, task="causal"):
    record = Record(fields, "f.jsonl, line 7")
    return shape_of([record], shape, task).convert(record)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"messages": TURNS}, Dialogue(TURNS)),
        ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}, Dialogue(TURNS)),
        ({"instruction": "hi", "output": "ho"}, Dialogue(TURNS)),
        ({"instruction": "hi", "input": "", "output": "ho"}, Dialogue(TURNS)),
        ({"prompt": "hi", "completion": "ho"}, Completion("hi", "ho")),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, Dialogue(TURNS)),
        ({"text": "hi", "id": 3}, Text("hi")),
        ({"text": "hi", "label": 1}, Text("hi")),
    ],
)
def test_shapes_are_recognised_by_their_columns(fields, expected):
    assert document(fields) == expected


def test_a_label_counts_in_classification_only():
    assert document({"text": "hi", "label": 1}, task="classification") == Labelled("hi", None, 1)


def test_the_input_of_alpaca_follows_its_instruction_in_the_same_turn():
    turns = document({"instruction": "add", "input": "1 2", "output": "3"}).turns
    assert turns[0] == {"role": "user", "content": "add\n\n1 2"}


def test_a_system_column_opens_the_dialogue():
    turns = document({"system": "be kind", "conversations": [{"from": "gpt", "value": "ho"}]}).turns
    assert [turn["role"] for turn in turns] == ["system", "assistant"]


def test_a_shape_can_be_forced():
    assert document({"text": "t", "messages": TURNS}, shape="text") == Text("t")


def test_columns_can_be_named():
    record = renamed(Record({"question": "1+1", "answer": "2", "prompt": "old"}, "p"), {"prompt": "question"})
    assert record == {"answer": "2", "prompt": "1+1"}
    with pytest.raises(DataError, match=r"p: has no column 'quastion'.*Did you mean 'question'"):
        renamed(Record({"question": ""}, "p"), {"prompt": "quastion"})


def test_text_parts_are_joined_and_unset_fields_dropped():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    turns = document({"messages": [{"role": "user", "content": parts, "name": None}]}).turns
    assert turns == [{"role": "user", "content": "ab"}]


@pytest.mark.parametrize(
    ("fields", "shape", "words"),
    [
        ({"question": "q"}, None, "the columns question make no shape known for causal: messages"),
        ({"text": "q"}, "chat", "shape 'chat' is unknown"),
        ({"text": ""}, None, "line 7: has no text in 'text'"),
        ({"text": None}, None, "line 7: has no text in 'text'"),
        ({"text": 5}, None, "line 7: 'text' holds a int"),
        ({"prompt": "a", "completion": " "}, None, "line 7: has no text in 'completion'"),
        ({"instruction": "", "input": " ", "output": "x"}, None, "line 7: has no text in 'instruction'"),
        ({"instruction": "a", "output": ""}, None, "line 7: has no text in 'output'"),
        ({"messages": []}, None, "line 7: 'messages' must be a list of at least one turn"),
        ({"messages": ["a"]}, None, "line 7, turn 1 of 'messages': must have role and content"),
        ({"messages": [{"role": "user", "content": ""}]}, None, "line 7, turn 1 of 'messages': has no text"),
        ({"messages": [{"role": "robot", "content": "x"}]}, None, "the role 'robot' is unknown"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, None, "the content must be text"),
        ({"text": "x"}, "text+label", "line 7: has no label"),
    ],
)
def test_a_record_that_cannot_be_used_is_named(fields, shape, words):
    with pytest.raises(DataError) as error:
        document(fields, shape)
    assert words in str(error.value) and "\n" not in str(error.value)
