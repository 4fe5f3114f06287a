"""Where the prompt ends and which token ends the answer, for chat templates in the shapes people use, and for text."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import AutoTokenizer

from prospect.data.template import apply
from prospect.data.tokens import Encoder
from prospect.errors import DataError, ModelError
from prospect.feedback.messages import message
from tests.helpers.tokenizers import (
    CALLS_OF_OBJECTS,
    CHATML,
    COMMAND,
    GEMMA,
    LLAMA3,
    NO_PREFIX,
    NO_SPECIAL,
    PHI3,
    THINKING,
    build_trees,
    byte_level,
    chat,
    cut_off,
    llama_like,
    record,
    texts,
)

# Chats


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>"),
        (LLAMA3, "<|eot_id|>"),
        (GEMMA, "<end_of_turn>"),
        (PHI3, "<|end|>"),
        (NO_SPECIAL, "<|endoftext|>"),
        (THINKING, "<|im_end|>"),
    ],
    ids=["chatml", "llama3", "gemma", "phi3", "no special token", "thinking"],
)
def test_each_template_ends_an_answer_with_its_own_token(template: str, end: str) -> None:
    tokenizer = byte_level(template)
    r = record(chat("Hi", "Hello.", "two plus two?"), "four", "")
    inference = tokenizer.apply_chat_template(list(r.prompt), add_generation_prompt=True)["input_ids"]
    made = Encoder(tokenizer)
    assert made.prompt_ids(r) == inference
    assert texts(tokenizer, r)[1] == [f"four{end}", end]
    assert texts(tokenizer, cut_off(r))[1] == ["four", ""]
    stops = {tokenizer.convert_tokens_to_ids(end), tokenizer.eos_token_id}
    assert set(made.end_of_turn_ids) == stops


def test_a_template_that_opens_the_next_turn_by_itself() -> None:
    assert texts(byte_level(COMMAND), record(chat("Hi"), "four"))[1] == ["<|end|>four<|eot_id|><|endoftext|>"]


def test_an_answer_that_carries_its_end_token_as_text_ends_once() -> None:
    tokenizer = byte_level(CHATML)
    r = record(chat("Hi"), "four<|im_end|>", "four<|endoftext|>", "four")
    assert texts(tokenizer, r)[1] == ["four<|im_end|>"] * 3
    assert texts(tokenizer, cut_off(r))[1] == ["four"] * 3
    plain_text = record("two plus two?", " four<|endoftext|>", " four")
    assert texts(tokenizer, plain_text)[1] == [" four<|endoftext|>"] * 2


def test_a_template_that_strips_content_is_taken_at_its_word() -> None:
    r = record(chat("  Hi "), "  four \n")
    assert texts(byte_level(LLAMA3), r) == ("[user]\n\nHi<|eot_id|>[assistant]\n\n", ["four<|eot_id|>"])
    assert texts(byte_level(LLAMA3), cut_off(r))[1] == ["four"]


def test_thinking_of_earlier_turns_is_dropped_and_of_the_answer_trained() -> None:
    tokenizer = byte_level(THINKING)
    r = record(chat("Hi", "<think>\nhm\n</think>\n\nHello.", "And?"), "<think>\nwell\n</think>\n\nfour")
    prompt, answers = texts(tokenizer, r)
    assert "hm" not in prompt
    assert answers == ["<think>\nwell\n</think>\n\nfour<|im_end|>"]


def test_template_kwargs_and_tools_reach_the_template() -> None:
    tokenizer = byte_level(THINKING)
    answer = "<think>\n\n</think>\n\nfour"
    off = record(chat("Hi"), answer, template_kwargs={"enable_thinking": False})
    assert texts(tokenizer, off) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        ["four<|im_end|>"],
    )
    tooled = "{% if tools %}{{ tools | tojson }}{% endif %}" + CHATML
    with_tools = record(chat("Hi"), "four", tools=({"name": "add"},))
    assert texts(byte_level(tooled), with_tools)[0].startswith('[{"name": "add"}]<|im_start|>')


def test_a_message_as_answer_keeps_its_other_keys() -> None:
    template = CHATML.replace("{{ m.content }}", "{{ m.content }}{% if m.call %}CALL {{ m.call }}<|eot_id|>{% endif %}")
    either = template.replace("<|eot_id|>{% endif %}<|im_end|>\n", "<|eot_id|>{% else %}<|im_end|>{% endif %}")
    tokenizer = byte_level(either)
    r = record(chat("Hi"), {"content": "four", "call": "add"}, {"role": "assistant", "content": "five"})
    assert texts(tokenizer, r)[1] == ["fourCALL add<|eot_id|>", "five<|im_end|>"]
    assert texts(tokenizer, cut_off(r))[1] == ["fourCALL add", "five"]


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        ('{"day": 1}', '{"day": 1}'),
        (" ", "{}"),
        ('{"day": 1, "day": 2}', r'"{\"day\": 1, \"day\": 2}"'),
        ("tomorrow", '"tomorrow"'),
    ],
    ids=["an object", "blank", "a key twice", "no JSON"],
)
def test_tool_calls_of_a_file_and_of_a_record_print_the_same(arguments: str, printed: str) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    tokenizer = byte_level(CALLS_OF_OBJECTS)
    for answer in (call, message(call, "completion")):
        assert texts(tokenizer, record(chat("Hi"), answer))[1] == [f"<tool>f {printed}</tool><|im_end|>"]


def test_a_prompt_that_is_no_beginning_of_its_conversation_is_an_error_naming_the_row() -> None:
    with pytest.raises(DataError, match=r"\(r/0\).*cannot be separated.*<think>.*enable_thinking") as caught:
        build_trees([record(chat("Hi"), "four")], byte_level(NO_PREFIX), max_length=64)
    assert (caught.value.row, caught.value.line) == ("r/0", 1)
    assert texts(byte_level(NO_PREFIX), record(chat("Hi"), "<think>\nhm</think>four"))[1] == [
        "hm</think>four<|im_end|>"
    ]


def test_a_template_that_refuses_a_conversation_is_an_error_naming_the_row() -> None:
    with pytest.raises(DataError, match=r"System role not supported.*--chat-template"):
        build_trees([record(chat("Hi", system="Be kind."), "four")], byte_level(GEMMA), max_length=64)
    with pytest.raises(DataError, match="no messages"):
        build_trees([record((), "four")], byte_level(CHATML), max_length=64)


# Choosing the template


def test_chats_need_a_template_and_the_chosen_one_is_saved(tmp_path: Path) -> None:
    r = record(chat("Hi"), "four")
    with pytest.raises(ModelError, match="--chat-template plain"):
        build_trees([r], byte_level(), max_length=64)
    file = tmp_path / "mine.jinja"
    file.write_text(CHATML, encoding="utf-8")
    tokenizer = byte_level()
    build_trees([r], tokenizer, max_length=64, chat_template=str(file))
    tokenizer.save_pretrained(tmp_path / "model")
    again = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert again.chat_template == CHATML
    assert texts(again, r) == texts(tokenizer, r)


def test_a_template_that_cannot_be_read_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read the chat template.*plain"):
        Encoder(byte_level(), "plian")
    broken = tmp_path / "broken.jinja"
    broken.write_text("{% for m in messages %}", encoding="utf-8")
    with pytest.raises(ModelError, match="not valid Jinja"):
        Encoder(byte_level(), str(broken))


def test_the_plain_template() -> None:
    r = record(chat("Hi", " Hello. ", "two plus two?", system="Be kind."), "four", "")
    want = "Be kind.\n\nUser: Hi\n\nAssistant: Hello.{eos}\n\nUser: two plus two?\n\nAssistant:"
    tokenizer = byte_level()
    prompt, answers = texts(tokenizer, r, "plain")
    assert prompt == want.format(eos="<|endoftext|>")
    assert answers == [" four<|endoftext|>", "<|endoftext|>"]
    assert "bos_token" not in tokenizer.chat_template
    assert Encoder(llama_like(), "plain").prompt_ids(r)[0] == 1
    with pytest.raises(DataError, match="messages of text only"):
        build_trees([record(({"role": "user", "content": [{"type": "image"}]},), "four")], tokenizer, max_length=9)


# Text data


def test_text_goes_as_it_is_even_on_a_chat_model() -> None:
    tokenizer = llama_like(CHATML)
    r = record("the boat", " crossed", "")
    made = Encoder(tokenizer)
    assert made.prompt_ids(r) == tokenizer("the boat")["input_ids"]
    assert made.prompt_ids(r)[0] == tokenizer.bos_token_id
    whole = tokenizer("the boat crossed")["input_ids"]
    assert made.prompt_ids(r) + made.completion_ids(r, r.completions[0]) == [*whole, tokenizer.eos_token_id]
    assert made.completion_ids(r, r.completions[1]) == [tokenizer.eos_token_id]


def test_a_tokenizer_that_adds_eos_does_not_end_the_prompt() -> None:
    tokenizer = llama_like()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert tokenizer("the boat")["input_ids"][-1] == 2
    r = record("the boat", " crossed")
    assert texts(tokenizer, r) == ("<s> the boat", ["crossed</s>"])


def test_an_empty_prompt_is_bos_or_an_error() -> None:
    r = record("", "the boat")
    assert Encoder(llama_like()).prompt_ids(r) == [1]
    assert Encoder(byte_level(bos_token="<|endoftext|>")).prompt_ids(r) == [byte_level().eos_token_id]
    with pytest.raises(DataError, match="no BOS token"):
        build_trees([r], byte_level(), max_length=64)


def test_a_tokenizer_without_eos_cannot_end_an_answer() -> None:
    tokenizer = byte_level()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no EOS token"):
        build_trees([record("Hi", "four")], tokenizer, max_length=64)
    trees, _ = build_trees([cut_off(record("Hi", "four"))], tokenizer, max_length=64)
    assert tokenizer.decode(trees[0].completions[0]) == "four"


@pytest.mark.parametrize("build", [byte_level, llama_like])
def test_a_token_across_the_boundary_is_split_and_counted(build: Any) -> None:
    tokenizer = build()
    r = record("what: ", "the boat", "é")
    trees, report = build_trees([r], tokenizer, max_length=64)
    assert report.flaws == {"straddled": 1}
    assert trees[0].prompt.tolist() == tokenizer("what: ")["input_ids"]
    for completion, text in zip(trees[0].completions, ("the boat", "é"), strict=True):
        assert completion is not None
        whole = [*trees[0].prompt.tolist(), *completion.tolist()]
        assert tokenizer.decode(whole, skip_special_tokens=True) == "what: " + text


# Properties

built = functools.cache(lambda build: build())
WORDS = st.text(alphabet=st.sampled_from("ab the.?!\n:é中😀<|▁ "), max_size=24)


@pytest.mark.parametrize("template", [CHATML, LLAMA3, GEMMA, PHI3, "plain"])
@pytest.mark.parametrize("build", [byte_level, llama_like])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(turns=st.lists(WORDS, min_size=1, max_size=5).filter(lambda t: len(t) % 2 == 1), answer=WORDS)
def test_prompt_ids_are_those_of_inference_and_nothing_is_lost(
    build: Any, template: str, turns: list[str], answer: str
) -> None:
    tokenizer = built(build)
    tokenizer.chat_template = template
    made = Encoder(tokenizer, "plain" if template == "plain" else None)
    r = record(chat(*turns), answer)
    prompt, (completion,) = made.prompt_ids(r), made.encode([r])[0].completions
    assert prompt == tokenizer.apply_chat_template(list(r.prompt), add_generation_prompt=True)["input_ids"]
    rendering = apply(tokenizer, [*r.prompt, {"role": "assistant", "content": answer}])
    end = made.end_of_turn_ids[0]
    assert completion[-1] == end
    assert end not in completion[:-1]
    said = rendering[: rendering.rindex(tokenizer.decode([end]))]
    bare = tokenizer(said, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode([*prompt, *completion[:-1]]) == tokenizer.decode(bare)
    if build is byte_level:
        assert tokenizer.decode([*prompt, *completion[:-1]]) == said
