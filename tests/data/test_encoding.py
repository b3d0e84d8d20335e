"""Completions, texts, classes and cuts, on the tokenizers and data of real models."""

import json

import pytest
import torch
from tokenizers import processors
from transformers import AutoModel

from lorasmith.data import EncodeSettings, encode, encode_reported, read
from lorasmith.data.batch import pad
from lorasmith.errors import DataError


def learned(example):
    return [label for label in example.labels if label != -100]


def completion(tokenizer, prompt, answer, **settings):
    (example,) = encode([{"prompt": prompt, "completion": answer}], tokenizer, EncodeSettings(**settings))
    return example


def test_a_completion_is_learned_with_the_end_of_text(gpt2):
    example = completion(gpt2, "Q: 2+2 A:", " four")
    assert gpt2.decode(example.input_ids) == "Q: 2+2 A: four<|endoftext|>"
    assert gpt2.decode(learned(example)) == " four<|endoftext|>"
    assert completion(gpt2, "Q: 2+2 A:", " four<|endoftext|>") == example, "the end must not be doubled"


@pytest.mark.parametrize("prompt", ["A: ", "Say it:\n", "Say it:\n\n", "no blank"])
@pytest.mark.parametrize("answer", ["4", " 4", "\nfour", "Käse 🧀", "s"])
def test_the_prompt_has_the_tokens_that_generation_will_see(gpt2, tinystories, prompt, answer):
    for tokenizer in (gpt2, tinystories):
        example = completion(tokenizer, prompt, answer)
        first = next(position for position, label in enumerate(example.labels) if label != -100)
        assert list(example.input_ids[:first]) == tokenizer(prompt)["input_ids"]


@pytest.mark.parametrize("answer", ["4", " 4", "\nfour", "Käse 🧀", "s"])
def test_a_prompt_and_its_completion_decode_to_what_was_written(gpt2, answer):
    for prompt in ("A: ", "Say it:\n", "no blank", ""):
        example = completion(gpt2, prompt, answer)
        assert gpt2.decode(example.input_ids) == prompt + answer + "<|endoftext|>"
        assert gpt2.decode(learned(example)) == answer + "<|endoftext|>"


def test_no_blank_comes_between_a_prompt_and_the_rest_of_its_last_word(tinystories):
    example = completion(tinystories, "Once upon a ti", "me there was")
    text = tinystories.decode(example.input_ids, skip_special_tokens=True)
    assert text.strip() == "Once upon a time there was"


def test_the_bos_is_not_doubled_where_the_text_has_it_already(tinystories):
    example = completion(tinystories, "<|start_story|>Once", " upon a time")
    assert list(example.input_ids).count(tinystories.bos_token_id) == 1


def test_an_end_that_the_tokenizer_adds_of_itself_comes_once_and_last(gpt2):
    gpt2._tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", gpt2.eos_token_id)]
    )
    example = completion(gpt2, "A: ", "4")
    assert gpt2.decode(example.input_ids) == "<|endoftext|>A: 4<|endoftext|>"
    assert gpt2.decode(learned(example)) == "4<|endoftext|>"
    (example,) = encode([{"text": "A"}], gpt2, EncodeSettings())
    assert gpt2.decode(example.input_ids) == "<|endoftext|>A<|endoftext|>"


def test_a_text_is_learned_whole_and_ended(tinystories):
    (example,) = encode([{"text": "Once upon a time"}], tinystories, EncodeSettings())
    expected = [*tinystories("Once upon a time")["input_ids"], tinystories.eos_token_id]
    assert list(example.input_ids) == list(example.labels) == expected


def test_windows_of_a_long_text_hold_its_tokens_in_order_without_overlap(shared, gpt2):
    records = read(shared / "text" / "grimms_fairy_tales.txt")
    examples, report = encode_reported(records, gpt2, EncodeSettings(max_length=128))
    tokens = [token for example in examples for token in example.input_ids]
    expected = [*gpt2(records[0]["text"], verbose=False)["input_ids"], gpt2.eos_token_id]
    # a last window of a single token predicts nothing and is left out
    assert tokens == expected[: len(tokens)] and len(expected) - len(tokens) <= 1
    assert {len(example) for example in examples[:-1]} == {128}
    assert report.supervised == len(tokens) - len(examples), "the first token of a window has nothing before it"


def test_a_text_has_no_answers_to_learn(gpt2):
    with pytest.raises(DataError, match="plain text has no answers for loss_on: assistant"):
        encode([{"text": "x"}], gpt2, EncodeSettings(loss_on="assistant"))


def test_long_examples_are_cut_and_those_without_an_answer_left_are_dropped_and_counted(gpt2):
    records = [
        {"prompt": "one two", "completion": " three four five six"},
        {"prompt": "one two three four five six", "completion": " seven"},
        {"prompt": "one", "completion": " two"},
    ]
    examples, report = encode_reported(records, gpt2, EncodeSettings(max_length=4))
    assert [gpt2.decode(learned(example)) for example in examples] == [" three four", " two<|endoftext|>"]
    assert (report.truncated, report.dropped, report.longest, report.examples) == (1, 1, 4, 2)
    assert "cut at max_length=4: 1 examples" in report.lines()
    assert "dropped, nothing left to learn: 1 examples" in report.lines()


def test_a_source_with_nothing_left_to_learn_is_an_error(gpt2, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "word " * 50, "completion": "x"}) + "\n")
    with pytest.raises(DataError, match=r"a.jsonl, line 1 and every record.*all labels are masked.*max_length=8"):
        encode(read(path), gpt2, EncodeSettings(max_length=8))


def test_a_bad_record_is_named_by_file_and_line(gpt2, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x y"}\n{"text": ""}\n')
    with pytest.raises(DataError, match=r"a.jsonl, line 2: has no text"):
        encode(read(path), gpt2, EncodeSettings())


def test_columns_are_named_for_real_dialogues_and_their_summaries(shared, gpt2):
    settings = EncodeSettings(columns={"prompt": "dialogue", "completion": "summary"})
    records = read(shared / "dialogsum")
    examples, report = encode_reported(records[:50], gpt2, settings)
    assert report.records == len(examples) + report.dropped == 50
    for record, example in zip(records, examples, strict=False):
        assert gpt2.decode(learned(example)) == record["summary"] + "<|endoftext|>"


def test_the_answers_of_real_instructions_are_learned_and_nothing_else(shared, gpt2):
    records = read(shared / "alpaca_style" / "alpaca_en_demo.json")[:200]
    examples, report = encode_reported(records, gpt2, EncodeSettings(max_length=2048))
    assert (report.examples, report.truncated, report.dropped) == (200, 0, 0)
    for record, example in zip(records, examples, strict=True):
        assert gpt2.decode(learned(example)) == record["output"] + "<|endoftext|>"
    assert report.supervised == sum(len(learned(example)) for example in examples)


def test_classes_of_real_reviews_are_cut_with_their_last_token_kept(shared, minilm):
    records = read(shared / "imdb", split="test")[:100]
    settings = EncodeSettings(task="classification", max_length=256)
    examples, report = encode_reported(records, minilm, settings)
    assert [example.labels for example in examples] == [record["label"] for record in records]
    assert {example.input_ids[-1] for example in examples} == {minilm.sep_token_id}
    lengths = [len(ids) for ids in minilm([record["text"] for record in records], verbose=False)["input_ids"]]
    assert report.truncated == sum(length > 256 for length in lengths) > 0
    assert (report.longest, report.supervised, report.label_names) == (256, 100, ("0", "1"))


def test_named_classes_keep_the_ids_of_training(minilm):
    records = [{"text": "good", "label": "pos"}, {"text": "bad", "label": "neg"}]
    training = encode_reported(records, minilm, EncodeSettings(task="classification"))[1]
    assert training.label_names == ("neg", "pos")
    settings = EncodeSettings(task="classification", label_names=training.label_names)
    assert encode(records[:1], minilm, settings)[0].labels == 1


def test_pairs_of_texts_are_joined_as_the_tokenizer_joins_them(minilm):
    records = [{"text": "a", "text_pair": "b", "label": 0}]
    (example,) = encode(records, minilm, EncodeSettings(task="classification"))
    assert list(example.input_ids) == minilm("a", "b")["input_ids"]
    assert list(example.token_type_ids) == minilm("a", "b")["token_type_ids"] == [0, 0, 0, 1, 1]


def test_bert_sees_a_batch_of_pairs_as_its_own_tokenizer_gives_it(minilm, shared):
    pairs = [("a cat", "it sleeps all day"), ("dogs", "bark")]
    records = [{"text": one, "text_pair": other, "label": 0} for one, other in pairs]
    batch = pad(encode(records, minilm, EncodeSettings(task="classification")), minilm.pad_token_id)
    model = AutoModel.from_pretrained(shared / "models" / "minilm-l6-v2").eval()
    theirs = minilm(*map(list, zip(*pairs)), padding=True, return_tensors="pt")
    assert set(batch.model_inputs()) == set(theirs)
    with torch.no_grad():
        assert torch.equal(model(**batch.model_inputs()).pooler_output, model(**theirs).pooler_output)


def test_a_single_text_has_no_token_types(minilm):
    (example,) = encode([{"text": "a", "label": 0}], minilm, EncodeSettings(task="classification"))
    assert example.token_type_ids is None


@pytest.mark.parametrize(
    ("records", "settings", "words"),
    [
        ([], {}, "there are no records"),
        ([{"text": "x"}], {"max_length": 1}, "max_length=1 must be at least 2"),
        ([{"text": "x"}], {"task": "classification"}, "make no shape known for classification: text\\+label"),
        ([{"text": "x"}], {"shape": "text", "task": "classification"}, "shape 'text' does not fit"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(gpt2, records, settings, words):
    with pytest.raises(DataError, match=words):
        encode(records, gpt2, EncodeSettings(**settings))
