"""Trees: what happens to over-long rows, what is counted, and the real model's tokenizer."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from prospect.data import template as templates
from prospect.data.dataset import TokenReport
from prospect.data.options import DataOptions
from prospect.data.text import Renderer
from prospect.data.tokens import Encoder
from prospect.doctor import measurements as check_lengths
from prospect.errors import DataError
from prospect.feedback.records import Record
from tests.helpers.tokenizers import CHATML, build_trees, byte_level, chat, cut_off, llama_like, record


def sizes(tokenizer: Any, r: Record) -> tuple[int, list[int]]:
    made = Encoder(tokenizer)
    return len(made.prompt_ids(r)), [len(made.completion_ids(r, c)) for c in r.completions]


def test_drop_leaves_out_what_does_not_fit() -> None:
    tokenizer = byte_level(CHATML)
    r = record(chat("Hi"), "four", "The small boat crossed the river.")
    p, (short, long) = sizes(tokenizer, r)
    trees, report = build_trees([r], tokenizer, max_length=p + long - 1)
    assert [c is None for c in trees[0].completions] == [False, True]
    assert report == TokenReport(1, 2, dropped=1, shortest=p + short, longest=p + long, max_length=p + long - 1)
    assert report.usable == 1
    assert report.describe() == (
        f"2 completions of 1 prompts, {p + short} to {p + long} tokens; 1 dropped (over {p + long - 1} tokens)"
    )
    trees, report = build_trees([r], tokenizer, max_length=p)
    assert trees[0].completions == (None, None)
    assert report.usable == 0
    assert build_trees([r], tokenizer, max_length=p + long)[1].dropped == 0


def test_cut_completion_cuts_without_an_end_of_turn() -> None:
    tokenizer = byte_level(CHATML)
    r = record(chat("Hi"), "four", "The small boat crossed the river.")
    p, (short, long) = sizes(tokenizer, r)
    trees, report = build_trees([r], tokenizer, max_length=p + short + 1, over_long="cut_completion")
    first, second = trees[0].completions
    assert first is not None
    assert second is not None
    assert len(second) == short + 1 < long
    assert tokenizer.decode(first).endswith("<|im_end|>")
    assert "<|im_end|>" not in tokenizer.decode(second)
    assert (report.cut_completion, report.dropped) == (1, 0)
    assert build_trees([r], tokenizer, max_length=p, over_long="cut_completion")[1].dropped == 2


def test_cut_prompt_drops_the_oldest_turns_and_keeps_the_system_message() -> None:
    tokenizer = byte_level(CHATML)
    turns = ("first question", "first answer", "second question", "second answer", "third question")
    r = record(chat(*turns, system="Be kind."), "four", "four and four")
    p, (_, long) = sizes(tokenizer, r)
    trees, report = build_trees([r], tokenizer, max_length=p + long - 1, over_long="cut_prompt")
    prompt = tokenizer.decode(trees[0].prompt)
    assert "first" not in prompt
    assert prompt.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nsecond question")
    assert all(c is not None for c in trees[0].completions)
    assert (report.cut_prompt, report.dropped) == (1, 0)
    least = len(Encoder(tokenizer).prompt_ids(record(chat("third question", system="Be kind."))))
    trees, report = build_trees([r], tokenizer, max_length=least + long - 1, over_long="cut_prompt")
    assert "second" not in tokenizer.decode(trees[0].prompt)
    assert [c is None for c in trees[0].completions] == [False, True]
    assert (report.cut_prompt, report.dropped) == (1, 1)
    assert build_trees([r], tokenizer, max_length=least, over_long="cut_prompt")[1].usable == 0


def test_cut_prompt_cuts_text_from_the_left_and_keeps_bos() -> None:
    tokenizer = llama_like()
    r = record("the boat crossed the river", " and nobody", " and")
    p, (long, _) = sizes(tokenizer, r)
    trees, report = build_trees([r], tokenizer, max_length=p + long - 5, over_long="cut_prompt")
    full = Encoder(tokenizer).prompt_ids(r)
    assert trees[0].prompt.tolist() == [1, *full[6:]]
    assert report.cut_prompt == 1
    trees, report = build_trees([r], tokenizer, max_length=long + 1, over_long="cut_prompt")
    assert [c is None for c in trees[0].completions] == [True, False]
    assert build_trees([r], tokenizer, max_length=2, over_long="cut_prompt")[1].dropped == 2


def rated_chat(turns: int) -> list[Record]:
    """One chat with a rating on each of its turns."""
    said = [f"{'answer' if i % 2 else 'question'} {i}" for i in range(2 * turns)]
    return [record(chat(*said[: 2 * k + 1]), said[2 * k + 1]) for k in range(turns)]


def printed_messages(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the conversations that a template prints from now on."""
    lengths, apply = list[int](), templates.apply

    def count(tokenizer: Any, messages: list[Any], *rest: Any, **more: Any) -> str:
        lengths.append(len(messages))
        return apply(tokenizer, messages, *rest, **more)

    monkeypatch.setattr(templates, "apply", count)
    return lengths


def test_cut_prompt_prints_few_ends_of_a_long_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest end that fits is that of all ends, and found without printing them all."""
    tokenizer = byte_level(CHATML)
    turns = 64
    r = rated_chat(turns)[-1]
    assert not isinstance(r.prompt, str)
    ends = [dataclasses.replace(r, prompt=r.prompt[i:]) for i in range(0, len(r.prompt), 2)]
    lengths = [p + c for p, (c,) in (sizes(tokenizer, end) for end in ends)]
    for room in (lengths[-1], lengths[-2], lengths[40] - 1, lengths[40], lengths[1], lengths[0] - 1):
        with monkeypatch.context() as patch:
            printed = printed_messages(patch)
            trees, report = build_trees([r], tokenizer, max_length=room, over_long="cut_prompt")
        assert len(trees[0].prompt) + len(trees[0].completions[0]) == max(x for x in lengths if x <= room)
        assert report.cut_prompt == 1
        assert len(printed) <= 2 * (1 + 7 + 5)  # prompt and conversation, of the whole, and of log2(64) ends, twice
        longer = 2 * len(next(end for end, size in zip(ends, lengths, strict=True) if size <= room).prompt) + 2
        assert max(printed[2:]) <= longer  # a chat of any length, cut to a few turns, costs a few turns


def test_a_turn_is_printed_twice_and_never_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With and without its answer; all is quoted once, and what the cache holds is not printed at all."""
    tokenizer, records = byte_level(CHATML), rated_chat(20)
    printed, quoted = printed_messages(monkeypatch), list[Any]()
    quote = Renderer._quote
    monkeypatch.setattr(Renderer, "_quote", lambda *a: (quoted.append(a[1]), quote(*a))[1])
    check_lengths.tokens(records, tokenizer, DataOptions(max_length=64, cache=tmp_path))
    prompts = sum(len(r.prompt) for r in records)
    conversations = [size for r in records for size in (len(r.prompt), len(r.prompt) + 1)]
    assert printed == conversations
    assert len(quoted) == prompts + len(records)
    printed.clear()
    check_lengths.tokens(records, tokenizer, DataOptions(max_length=64, cache=tmp_path))
    assert printed == []


def test_error_names_row_and_lengths() -> None:
    tokenizer = byte_level(CHATML)
    r = record(chat("Hi"), "four", "The small boat.", "The small boat crossed the river.")
    p, (short, middle, _) = sizes(tokenizer, r)
    with pytest.raises(DataError, match=rf"row 2 \(r/1\): {p} prompt tokens and {middle} .*\(1 more rows") as caught:
        build_trees([r], tokenizer, max_length=p + short, over_long="error")
    assert [e.row for e in caught.value.problems] == ["r/1", "r/2"]


def test_a_row_cut_off_before_its_first_token_is_left_out_and_counted() -> None:
    trees, report = build_trees([cut_off(record(chat("Hi"), ""))], byte_level(CHATML), max_length=64)
    assert trees[0].completions == (None,)
    assert (report.empty, report.dropped, report.usable) == (1, 0, 0)


def test_trees_are_aligned_with_records_and_batches_do_not_matter() -> None:
    tokenizer = byte_level(CHATML)
    rows = [dataclasses.replace(record(chat(f"question {i}"), "four", f"{i}"), id=f"r{i}") for i in range(1100)]
    trees, report = build_trees(rows, tokenizer, max_length=64)
    assert [t.record for t in trees] == [r.id for r in rows]
    assert (report.trees, report.completions) == (1100, 2200)
    made = Encoder(tokenizer)
    for i in (0, 999, 1000, 1099):
        assert trees[i].prompt.tolist() == made.prompt_ids(rows[i])
        assert trees[i].prompt.dtype == np.int32
    assert build_trees([], tokenizer, max_length=64)[0] == []


# The real model, and what an import costs


def test_stories260k_with_the_plain_template(shared: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "models/stories260K")
    r = record(chat("Tell me a story."), "Once upon a time", "")
    trees, report = build_trees([r], tokenizer, max_length=512, chat_template="plain")
    assert tokenizer.decode(trees[0].prompt) == "<s> User: Tell me a story.\n\nAssistant:"
    assert tokenizer.decode(trees[0].completions[0]) == "Once upon a time</s>"
    answer: Any = trees[0].completions[0]
    assert tokenizer.decode([*trees[0].prompt, *answer]).endswith("Assistant: Once upon a time</s>")
    assert trees[0].completions[1].tolist() == [2]
    assert report.flaws == {}
    assert Encoder(tokenizer).end_of_turn_ids == (2,)


def test_tokens_do_not_import_torch() -> None:
    code = "import sys, prospect.data.tokens; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
