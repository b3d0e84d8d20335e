"""Which tokens of a dialogue are learned, under chat templates that behave as those of well-known families."""

import pytest

from lorasmith.data import PLAIN_CHAT_TEMPLATE, EncodeSettings, encode, encode_reported, ensure_chat_template_
from lorasmith.errors import DataError

TURNS = [
    {"role": "user", "content": "Say hi"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "Now say bye, not hi"},
    {"role": "assistant", "content": "bye"},
]

# ChatML that marks answers itself; the end of the turn stands outside the mark in the second
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ m['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
)
MARKED_WITHOUT_END = MARKED.replace(" + '<|im_end|>' }}{% endgeneration %}", " }}{% endgeneration %}{{ '<|im_end|>' }}")
# Llama 2's and Mistral's manner: nothing opens an answer
NO_OPENING = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
# a header before the answer, but add_generation_prompt is not heard
DEAF = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
# Qwen 3's manner: an empty thought before the last answer only, so earlier renderings are no beginnings of the whole
LAST_ANSWER_DIFFERS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# DeepSeek R1's manner: generation opens a thought that the history does not show
OPENS_A_THOUGHT = DEAF + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
# both at once, so that of all answers but the last neither the beginning nor the end can be rendered
HIDES_THOUGHTS = LAST_ANSWER_DIFFERS.replace("assistant\\n' }}{% endif %}", "assistant\\n<think>\\nHm' }}{% endif %}")
# shouts, so that an answer cannot be found by its words either
SHOUTS = OPENS_A_THOUGHT.replace("m['content']", "m['content']|upper")


def learned(tokenizer, turns=TURNS, **settings):
    (example,) = encode([{"messages": turns}], tokenizer, EncodeSettings(**settings))
    return tokenizer.decode([label for label in example.labels if label != -100])


def test_every_answer_is_learned_with_the_token_that_ends_it_and_nothing_else(chatml):
    assert learned(chatml) == "hi<|im_end|>bye<|im_end|>"


def test_the_tokens_are_those_of_the_chat_template(chatml):
    (example,) = encode([{"messages": TURNS}], chatml, EncodeSettings())
    assert list(example.input_ids) == chatml.apply_chat_template(TURNS)["input_ids"]


def test_the_tokens_before_an_answer_are_those_that_generation_will_see(chatml):
    (example,) = encode([{"messages": TURNS}], chatml, EncodeSettings(loss_on="completions"))
    prompt = chatml.apply_chat_template(TURNS[:-1], add_generation_prompt=True)["input_ids"]
    first = next(position for position, label in enumerate(example.labels) if label != -100)
    assert list(example.input_ids[:first]) == prompt


def test_completions_learns_the_last_answer_and_all_learns_everything(chatml):
    assert learned(chatml, loss_on="completions") == "bye<|im_end|>"
    assert learned(chatml, loss_on="all") == chatml.apply_chat_template(TURNS, tokenize=False)


def test_found_answers_equal_those_that_a_template_marks(chatml):
    found = encode([{"messages": TURNS}], chatml, EncodeSettings())
    chatml.chat_template = MARKED
    # transformers' own mask, from {% generation %}
    marks = chatml.apply_chat_template(TURNS, return_dict=True, return_assistant_tokens_mask=True)["assistant_masks"]
    assert [label != -100 for label in found[0].labels] == [bool(mark) for mark in marks]
    assert encode([{"messages": TURNS}], chatml, EncodeSettings()) == found
    assert learned(chatml, loss_on="completions") == "bye<|im_end|>"


def test_the_end_of_a_turn_is_learned_where_the_template_leaves_it_outside_its_mark(chatml):
    chatml.chat_template = MARKED_WITHOUT_END
    assert learned(chatml) == "hi<|im_end|>bye<|im_end|>"


def test_an_answer_that_nothing_opens_is_learned_from_where_the_prompt_ends(chatml):
    chatml.chat_template = NO_OPENING
    assert learned(chatml) == " hi<|im_end|> bye<|im_end|>"


@pytest.mark.parametrize("template", [DEAF, OPENS_A_THOUGHT])
def test_an_answer_whose_rendered_prompt_is_no_help_is_found_by_its_words(chatml, template):
    chatml.chat_template = template
    # "hi" stands in the prompts too; only the answers count
    assert learned(chatml) == "hi<|im_end|>bye<|im_end|>"
    report = encode_reported([{"messages": TURNS}], chatml, EncodeSettings())[1]
    assert any("found by their words" in note for note in report.notes)


def test_a_template_that_treats_the_last_answer_differently_has_all_answers_learned(chatml):
    chatml.chat_template = LAST_ANSWER_DIFFERS
    assert learned(chatml) == "hi<|im_end|><think>\n\n</think>\n\nbye<|im_end|>"


def test_an_answer_is_not_taken_for_the_same_words_in_the_prompt_before_it(chatml):
    chatml.chat_template = HIDES_THOUGHTS
    (example,) = encode([{"messages": TURNS}], chatml, EncodeSettings())
    assert learned(chatml) == "hi<|im_end|>bye<|im_end|>"
    first = next(position for position, label in enumerate(example.labels) if label != -100)
    assert chatml.decode(example.input_ids[:first]).endswith("Say hi<|im_end|>\n<|im_start|>assistant\n")


def test_answers_that_cannot_be_told_from_the_prompt_are_an_error_with_the_fix(chatml):
    chatml.chat_template = SHOUTS
    with pytest.raises(DataError, match=r"record 1: the chat template changes the text of turn 2.*loss_on: all"):
        learned(chatml)


def test_a_dialogue_that_the_template_refuses_is_named(chatml):
    chatml.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match=r"record 1: the chat template refuses the dialogue \(roles must alternate\)"):
        learned(chatml)


def test_a_dialogue_without_an_answer_is_refused_unless_everything_is_learned(chatml):
    with pytest.raises(DataError, match="record 1: has no assistant turn to learn from"):
        learned(chatml, TURNS[:1])
    assert learned(chatml, TURNS[:1], loss_on="all").startswith("<|im_start|>user")


def test_tools_reach_the_template(chatml):
    chatml.chat_template = "{{ tools | length }}" + chatml.chat_template
    records = [{"messages": TURNS, "tools": [{"type": "function"}]}]
    (example,) = encode(records, chatml, EncodeSettings())
    assert chatml.decode(example.input_ids[:1]) == "1"


def test_a_tokenizer_without_a_template_keeps_the_plain_one_that_training_used(tinystories, tmp_path):
    report = encode_reported([{"messages": TURNS}], tinystories, EncodeSettings())[1]
    assert any("no chat template" in note for note in report.notes)
    tinystories.save_pretrained(tmp_path)
    reloaded = type(tinystories).from_pretrained(tmp_path)
    assert reloaded.chat_template == tinystories.chat_template
    assert PLAIN_CHAT_TEMPLATE in reloaded.chat_template


def test_the_plain_template_writes_headings_and_ends_every_answer(gpt2):
    assert ensure_chat_template_(gpt2)
    assert gpt2.apply_chat_template(TURNS, tokenize=False) == (
        "### Instruction:\nSay hi\n\n### Response:\nhi<|endoftext|>\n\n"
        "### Instruction:\nNow say bye, not hi\n\n### Response:\nbye<|endoftext|>"
    )
    assert gpt2.apply_chat_template(TURNS[:1], tokenize=False, add_generation_prompt=True) == (
        "### Instruction:\nSay hi\n\n### Response:\n"
    )
    assert learned(gpt2) == "hi<|endoftext|>bye<|endoftext|>"
    assert not ensure_chat_template_(gpt2)


def test_the_plain_template_writes_the_bos_once_where_the_tokenizer_adds_one(tinystories, gpt2):
    (example,) = encode([{"messages": TURNS}], tinystories, EncodeSettings())
    assert list(example.input_ids).count(tinystories.bos_token_id) == 1
    assert example.input_ids[0] == tinystories.bos_token_id
    ensure_chat_template_(gpt2)
    assert "bos_token" not in gpt2.chat_template


def test_answers_that_do_not_end_in_eos_are_told(chatml):
    settings = EncodeSettings()
    report = encode_reported([{"messages": TURNS}], chatml, settings)[1]
    assert report.answer_ends == (chatml.eos_token_id,) and not report.notes
    chatml.eos_token = "<|endoftext|>"
    report = encode_reported([{"messages": TURNS}], chatml, settings)[1]
    assert "answers end with '<|im_end|>', not with the eos token '<|endoftext|>'" in report.notes[0]
    chatml.chat_template = chatml.chat_template.replace("<|im_end|>", "")
    report = encode_reported([{"messages": TURNS}], chatml, settings)[1]
    assert "warning: 1 of 1 answers end without an end-of-text token" in report.notes[0]
