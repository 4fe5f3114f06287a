"""The text that is trained is the text that was given, or it is counted and shown: templates that add, drop and open
thoughts, leave out messages or tool calls, and tokenizers that do not give a text back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prospect.data.dataset import TokenReport
from prospect.doctor.check import check
from prospect.errors import DataError
from prospect.feedback.load import load
from prospect.feedback.records import Message, Record
from prospect.run import train
from tests.helpers.models import tiny
from tests.helpers.needs import needs_guarded_templates
from tests.helpers.tokenizers import (
    CALLS_OF_OBJECTS,
    CALLS_OF_TEXT,
    CALLS_PRINTED,
    CHATML,
    COMMAND,
    LLAMA3,
    THINKING,
    THOUGHT_ALWAYS,
    THOUGHT_OPENED,
    THOUGHT_STRIPPED,
    THOUGHT_STRIPPED_AND_OPENED,
    build_trees,
    byte_level,
    chat,
    cut_off,
    llama_like,
    record,
)

END = "<|im_end|>"
THOUGHT = "<think>\nhm\n</think>\n\nfour"


def encoded(template: str | None, r: Record, tokenizer: Any = None) -> tuple[str, str, TokenReport]:
    """Prompt and first completion, decoded, and the report."""
    tokenizer = tokenizer or byte_level(template)
    trees, report = build_trees([r], tokenizer, max_length=99999)
    completion = trees[0].completions[0]
    assert completion is not None
    return tokenizer.decode(trees[0].prompt), tokenizer.decode(completion), report


# Thoughts


@pytest.mark.parametrize(
    ("template", "given", "trained", "flaws"),
    [
        (CHATML, THOUGHT, THOUGHT + END, {}),
        (THINKING, THOUGHT, THOUGHT + END, {}),
        (THOUGHT_ALWAYS, THOUGHT, THOUGHT + END, {}),
        (THOUGHT_ALWAYS, "four", "<think>\n\n</think>\n\nfour" + END, {"added": 1}),
        (THOUGHT_OPENED, THOUGHT, "hm\n</think>\n\nfour" + END, {}),
        (THOUGHT_OPENED, "hm\n</think>\n\nfour", "hm\n</think>\n\nfour" + END, {}),
        (THOUGHT_OPENED, "four", "\n</think>\n\nfour" + END, {"added": 1}),
        (THOUGHT_STRIPPED, "four", "four" + END, {}),
        (THOUGHT_STRIPPED, THOUGHT, "four" + END, {"dropped": 1}),
        (THOUGHT_STRIPPED_AND_OPENED, THOUGHT, "hm\n</think>\n\nfour" + END, {}),
        (THOUGHT_STRIPPED_AND_OPENED, "hm\n</think>\n\nfour", "hm\n</think>\n\nfour" + END, {}),
    ],
)
def test_what_a_template_adds_or_drops_is_counted(
    template: str, given: str, trained: str, flaws: dict[str, int]
) -> None:
    r = record(chat("Hi"), given)
    prompt, completion, report = encoded(template, r)
    inference = byte_level(template).apply_chat_template(list(r.prompt), add_generation_prompt=True, tokenize=False)
    assert prompt == inference
    assert completion == trained
    assert report.flaws == flaws


@pytest.mark.parametrize(
    ("template", "opening"),
    [
        (THOUGHT_ALWAYS, "<think>\n"),
        (THOUGHT_STRIPPED, "<think>\n"),
        (THOUGHT_OPENED, "<think>\n"),
        (THOUGHT_OPENED, ""),
        (THOUGHT_STRIPPED_AND_OPENED, "<think>\n"),
        (THOUGHT_STRIPPED_AND_OPENED, ""),
    ],
)
def test_an_answer_cut_off_inside_its_thought_is_the_prompt_and_the_text(template: str, opening: str) -> None:
    prompt, completion, report = encoded(template, cut_off(record(chat("Hi"), opening + "hm, let")))
    assert (prompt + completion).endswith("assistant\n<think>\nhm, let")
    assert (prompt + completion).count("<think>") == 1
    assert report.flaws == {}


def test_a_thought_that_never_ends_gets_no_second_one() -> None:
    for template in (THOUGHT_ALWAYS, THOUGHT_OPENED, THOUGHT_STRIPPED_AND_OPENED):
        prompt, completion, report = encoded(template, record(chat("Hi"), "<think>\nhm"))
        assert (prompt + completion).endswith("assistant\n<think>\nhm" + END)
        assert report.flaws == {}


def test_the_switch_that_leaves_the_thought_out() -> None:
    for template in (THOUGHT_ALWAYS, THINKING):
        r = record(chat("Hi"), "four", template_kwargs={"enable_thinking": False})
        prompt, completion, report = encoded(template, r)
        assert prompt.endswith("<think>\n\n</think>\n\n")
        assert completion == "four" + END
        assert report.flaws == {}


def test_an_answer_without_thought_where_the_prompt_opens_one_is_an_error_that_counts_the_rows() -> None:
    records = [record(chat("Hi"), "four"), record(chat("Hi"), THOUGHT), record(chat("Ho"), "five")]
    with pytest.raises(DataError, match=r"cannot be separated.*1 more rows") as caught:
        build_trees(records, byte_level(THOUGHT_STRIPPED_AND_OPENED), max_length=99)
    assert len(caught.value.problems) == 2


def test_structure_around_every_answer_and_trimmed_blanks_are_no_flaws() -> None:
    assert encoded(COMMAND, record(chat("Hi"), "four"))[2].flaws == {}
    assert encoded(LLAMA3, record(chat("  Hi "), " four \n"))[2].flaws == {}


def test_check_and_train_show_an_example(tmp_path: Path) -> None:
    records = [record(chat(f"Hi {i}"), f"four {i}") for i in range(3)]
    findings = {f.key: f for f in check(records, tokenizer=byte_level(THOUGHT_ALWAYS)).findings}
    added = findings["added"]
    assert added.level == "warning"
    assert added.data == {"completions": 3}
    assert 'For example line 1 (r/0): given "four 0", trained "<think> </think> four 0<|im_end|>"' in added.message
    assert len(added.examples) == 2
    rows = [
        {"prompt": [{"role": "user", "content": f"{i} plus two?"}], "completion": f"{i} it is", "label": i % 2 == 0}
        for i in range(4)
    ]
    model = tiny(tmp_path / "model", THOUGHT_ALWAYS, seed=0)
    run = train(model, rows, tmp_path / "run", precision="fp32", max_steps=1, samples=0)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    said = "\n".join(str(line.get("message")) for line in lines)
    written = json.loads((run.folder / "check.json").read_text())["findings"]
    shown = next(f for f in written if f["key"] == "added")
    assert 'trained "<think> </think> 0 it is<|im_end|>"' in shown["message"]
    assert "4 of 4 (100 %) answers" in said
    assert 'For example line 1 (line1): given "0 it is", trained "<think> </think> 0 it is<|im_end|>"' in said


def test_a_message_that_the_template_leaves_out_is_counted() -> None:
    no_system = CHATML.replace("{%- for m in messages %}", "{%- for m in messages if m.role != 'system' %}")
    assert encoded(no_system, record(chat("Hi"), "four"))[2].flaws == {}
    report = encoded(no_system, record(chat("Hi", system="Be kind."), "four"))[2]
    assert report.flaws == {"unprinted": 1}
    assert report.examples["unprinted"] == ('line 1 (r/0): not printed: "Be kind."',)
    assert (
        encoded(CHATML, record(chat("Hi", "<think>\nhm\n</think>\n\nHo", "a", system="Be kind."), "b"))[2].flaws == {}
    )


def test_a_lone_system_message_is_a_prompt() -> None:
    system: Message = {"role": "system", "content": "Greet the user."}
    prompt, completion, report = encoded(CHATML, record((system,), "Welcome!"))
    assert prompt == "<|im_start|>system\nGreet the user.<|im_end|>\n<|im_start|>assistant\n"
    assert completion == "Welcome!" + END
    assert report.flaws == {}


# Tool calls


def call(arguments: Any, *, plain: bool = False) -> Message:
    function = {"name": "weather", "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [function if plain else {"function": function}]}


@pytest.mark.parametrize("arguments", ['{"city": "Bern"}', {"city": "Bern"}])
@pytest.mark.parametrize("template", [CALLS_OF_OBJECTS, CALLS_OF_TEXT, CALLS_PRINTED])
def test_arguments_are_objects_or_text_as_the_template_wants_them(template: str, arguments: Any) -> None:
    history = (*chat("Hi"), call(arguments), {"role": "tool", "content": "sun"})
    prompt, completion, report = encoded(template, record(history, call(arguments)))
    assert '<tool>weather {"city": "Bern"}</tool>' in prompt
    assert completion == '<tool>weather {"city": "Bern"}</tool>' + END
    assert report.flaws == {}


def test_arguments_that_are_no_object_stay_what_they_are() -> None:
    for text in ("{broken", "[1]", "9" * 5000, "[" * 5000):
        template = CALLS_OF_TEXT.replace("'' +", "'' ~")
        assert encoded(template, record(chat("Hi"), call(text)))[1] == f"<tool>weather {text}</tool>" + END
    flat = CALLS_OF_OBJECTS.replace("call.function.", "call.")
    assert '{"a": 1}' in encoded(flat, record(chat("Hi"), call('{"a": 1}', plain=True)))[1]


def test_calls_and_thoughts_that_are_not_printed_are_counted() -> None:
    report = encoded(CHATML, record(chat("Hi"), call('{"city": "Bern"}')))[2]
    assert report.flaws == {"dropped": 1}
    assert 'given "{"tool_calls": [{"function": {"name": "weather"' in report.examples["dropped"][0]
    thoughtful: Message = {"role": "assistant", "content": "four", "reasoning_content": "hm"}
    assert encoded(CHATML, record(chat("Hi"), thoughtful))[2].flaws == {"dropped": 1}
    prints = CHATML.replace("{{ m.content }}", "{{ m.reasoning_content }}{{ m.content }}")
    assert encoded(prints, record(chat("Hi"), thoughtful))[2].flaws == {}
    assert encoded(CHATML, record("Hi", call('{"city": "Bern"}')))[2].flaws == {"dropped": 1}


# What a row may give to its template


@pytest.mark.parametrize(
    "name",
    ["chat_template", "tokenize", "add_generation_prompt", "continue_final_message", "tools", "messages", "eos_token",
     "return_dict", "padding", "range", "raise_exception",
     pytest.param("sanitize_control_tokens", marks=needs_guarded_templates)],
)  # fmt: skip
def test_a_row_may_not_replace_the_template_nor_how_it_is_applied(name: str) -> None:
    with pytest.raises(DataError, match=f'may not hold "{name}"') as caught:
        encoded(CHATML, record(chat("Hi"), "four", template_kwargs={name: "{{ 1 }}"}))
    assert caught.value.line == 1


def test_switches_that_the_template_never_reads_change_nothing_and_are_named() -> None:
    r = record(chat("Hi"), "four", template_kwargs={"enable_thinkin": False, "max_steps": 3})
    assert encoded(THOUGHT_ALWAYS, r)[1] == "<think>\n\n</think>\n\nfour" + END
    findings = {f.key: f for f in check([r], tokenizer=byte_level(THOUGHT_ALWAYS)).findings}
    assert findings["template_kwargs"].message.endswith("never reads: enable_thinkin (1), max_steps (1)")


def test_a_template_that_never_ends_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prospect.data.template.SECONDS", 0.3)
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    records = [record(chat("Hi", system="s"), "four")] * 50
    with pytest.raises(DataError, match=r"did not end within 0\.3 s"):
        build_trees(
            records, byte_level("{% if messages[0].role == 'system' %}" + loops + "{% endif %}" + CHATML), max_length=9
        )
    recursion = "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{% if messages[0].role == 'system' %}{{ f(0) }}{% endif %}"
    with pytest.raises(DataError, match="cannot print this conversation"):
        build_trees(records[:1], byte_level(recursion + CHATML), max_length=9)


# Tokenizers


def words_of(*, lower: bool = False) -> Any:
    """A tokenizer of whole words with an <unk>."""
    vocabulary = {word: i for i, word in enumerate(["<unk>", "</s>", "the", "boat", "The"])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.normalizer = normalizers.Lowercase() if lower else None
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")


def test_a_tokenizer_that_does_not_give_the_text_back_is_counted() -> None:
    assert encoded(None, record("the ", "boat"), words_of())[2].flaws == {}
    for tokenizer, prompt, answer in (
        (words_of(), "the ", "ship"),
        (words_of(), "a ", "boat"),
        (words_of(lower=True), "The ", "boat"),
        (words_of(), "the\n\n", "boat  boat"),
    ):
        assert encoded(None, record(prompt, answer), tokenizer)[2].flaws == {"lossy": 1}
    stripping = byte_level(CHATML)
    stripping.backend_tokenizer.normalizer = normalizers.StripAccents()
    report = encoded(None, record(chat("Hi"), "ne\u0301e"), stripping)[2]
    assert report.examples["lossy"] == ('line 1 (r/0): given "ne\u0301e<|im_end|>", read back "nee<|im_end|>"',)
    findings = {f.key: f for f in check([record("the ", "ship")], tokenizer=words_of()).findings}
    assert findings["lossy"].level == "warning"


@pytest.mark.parametrize("template", [CHATML, LLAMA3, COMMAND, "plain"])
@pytest.mark.parametrize("build", [byte_level, llama_like])
def test_whole_tokenizers_raise_no_false_alarm(build: Any, template: str) -> None:
    tokenizer = build(None if template == "plain" else template)
    odd = ["  two  blanks\t\n\n ", "Ünï — 中文 😀", "a .  b , c ?!", "def f(x):\n    return x\r\n", "<b>x</b>", ""]
    records = [record(chat(a, b, a, system=b), c, a) for a in odd for b in odd for c in odd]
    records += [record(a, b) for a in odd if a for b in odd]
    report = build_trees(records, tokenizer, max_length=999, chat_template="plain" if template == "plain" else None)[1]
    assert "lossy" not in report.flaws
    assert set(report.flaws) <= {"straddled"}


# Real ones


def test_real_tokenizers_give_texts_back(shared: Path) -> None:
    from transformers import AutoTokenizer

    folder = Path(__file__).resolve().parents[2] / "prospect/demo/assistant"
    for model, template in ((shared / "models/stories260K", "plain"), (folder, None)):
        for case in ("e03_think_text", "e04_nothink"):
            records = load(shared / f"cases/rows/{case}.jsonl").records
            report = build_trees(records, AutoTokenizer.from_pretrained(model), max_length=999, chat_template=template)[
                1
            ]
            assert report.flaws == {}


@pytest.mark.parametrize(
    ("case", "template", "flaws"),
    [
        ("e03_think_text", THOUGHT_ALWAYS, {}),
        ("e03_think_text", THOUGHT_STRIPPED, {"dropped": 4}),
        ("e03_think_text", THOUGHT_STRIPPED_AND_OPENED, {}),
        ("e04_nothink", THOUGHT_ALWAYS, {"added": 4}),
        ("e04_nothink", THOUGHT_STRIPPED, {}),
        ("e05_nothink_kwargs", THOUGHT_ALWAYS, {}),
    ],
)
def test_cases_with_thoughts(shared: Path, case: str, template: str, flaws: dict[str, int]) -> None:
    records = load(shared / f"cases/rows/{case}.jsonl").records
    assert build_trees(records, byte_level(template), max_length=999)[1].flaws == flaws
