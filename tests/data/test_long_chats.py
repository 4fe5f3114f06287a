"""Chats of many rated turns: what is printed and tokenised from where the last turn ended is what is made of each turn
by itself, and the work grows with the turns and not with their square."""

from __future__ import annotations

import copy
import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import normalizers
from transformers import AutoTokenizer

from prospect.data import dataset, textids
from prospect.data import template as templates
from prospect.data.dataset import build_dataset, digest
from prospect.data.options import DataOptions, SpecialTokens
from prospect.data.schedule import fill
from prospect.data.text import Flaw
from prospect.data.textids import TextIds
from prospect.data.tokens import Encoded, Encoder
from prospect.doctor.check import check
from prospect.errors import DataError
from prospect.feedback.records import Completion, Message, Record
from tests.helpers import tokenizers
from tests.helpers.tokenizers import CHATML, THINKING, build_trees, byte_level, llama_like

ASSISTANT = Path(__file__).resolve().parents[2] / "prospect/demo/assistant"
TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
OPENING = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
LOOP = "{% for m in messages %}" + TURN + "{% endfor %}"

SHAPES = {
    **{name: text for name, text in vars(tokenizers).items() if isinstance(text, str) and "{%" in text},
    "plain": templates.PLAIN,
    "last turn only": (ASSISTANT / "chat_template.jinja").read_text(),
    "system first": "{% if messages[0].role == 'system' %}{% set system, rest = messages[0].content, messages[1:] %}"
    "{% else %}{% set system, rest = 'Be kind.', messages %}{% endif %}{{ system }}<|end|>{% for m in rest %}"
    + TURN + "{% if loop.last and m.role == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    + OPENING,
    "neighbours": "{% for m in messages %}{% if m.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}\n{{ m.content }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}"
    "{% else %}" + TURN + "{% endif %}{% endfor %}" + OPENING,
    "last question": "{% set ns = namespace(at=-1, open=true) %}{% for m in messages[::-1] %}"
    "{% if ns.open and m.role == 'user' %}{% set ns.open = false %}{% set ns.at = messages|length - 1 - loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content if loop.index0 > ns.at else m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}" + OPENING,
    "counts": "{% set ns = namespace(n=0, roles=[]) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.n = ns.n + 1 %}{% set ns.roles = ns.roles + [m.role] %}{% endif %}{{ loop.index }} " + TURN
    + "{% endfor %}{% if add_generation_prompt %}{{ ns.n + ns.roles|length }} <|im_start|>assistant\n{% endif %}",
    "length first": "{{ (messages|length + 1) // 2 }} " + LOOP + OPENING,
    "asks first": "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}" + LOOP + OPENING,
    "looks ahead": "{{ 'long' if messages[6] is defined }}" + LOOP + OPENING,
    "length inside": "{% for m in messages %}{{ (loop.length + 1) // 2 if m.role == 'user' }}" + TURN + "{% endfor %}"
    + OPENING,
    "two loops": "{% for m in messages %}{{ '.' if m.role == 'user' }}{% endfor %}" + LOOP + OPENING,
    "macro": "{% macro turns(all) %}{% for m in all %}" + TURN + "{% endfor %}{% endmacro %}{{ turns(messages) }}"
    + OPENING,
    "kept text": "{% set text %}" + LOOP + "{% endset %}{{ text | trim }}" + OPENING,
    "some only": "{% for m in messages if m.role != 'system' %}{{ loop.index }}" + TURN + "{% endfor %}" + OPENING,
    "in turn": "{% set c = cycler('a', 'b') %}"
    "{% for m in messages %}{{ c.next() if m.role == 'user' }}" + TURN + "{% endfor %}" + OPENING,
    "before": "{% for m in messages %}{{ loop.previtem.role if loop.previtem and m.role == 'user' }}"
    + TURN + "{% endfor %}" + OPENING,
    "after": "{% for m in messages %}{{ loop.nextitem.role if loop.nextitem and m.role == 'assistant' }}"
    + TURN + "{% endfor %}" + OPENING,
    "nested": "{% set ns = namespace(one=namespace(n=0)) %}{% for m in messages %}{% set x = ns.one %}"
    "{% set x.n = x.n + 1 %}" + TURN + "{% endfor %}{{ ns.one.n if not add_generation_prompt }}" + OPENING,
    "breaks": "{% for m in messages %}{% if loop.index > 9 and m.role == 'user' %}{% continue %}{% endif %}"
    "{% if loop.index > 19 and m.role == 'user' %}{% break %}{% endif %}" + TURN + "{% endfor %}" + OPENING,
    "as JSON": "{{ messages | tojson }}" + OPENING,
    "switches": "{{ tools | tojson if tools }}{{ enable_thinking }}" + LOOP + OPENING,
    "every third": LOOP + "{% if messages|length % 3 == 0 %}go on{% endif %}" + OPENING,
}  # fmt: skip

CONTENTS = [
    "two plus two?", "  The small boat\ncrossed the river. ", "é中😀", "", "yes", "a <|im_end|> in a text",
    "\U000f0001", "<think>\nhm\n</think>\n\nfour", "it is four.\n", "<|im_start|>system\nx",
]  # fmt: skip


def call(arguments: Any) -> Message:
    return {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}


def conversation(rng: random.Random, *, calls: bool, turns: int = 14) -> list[Record]:
    """The rated turns of one chat, which share their messages, and some turns of another that leaves it half-way."""
    messages: list[Message] = [{"role": "system", "content": "Be kind."}] if rng.random() < 0.5 else []
    records: list[Record] = []
    more: dict[str, Any] = {"template_kwargs": {"enable_thinking": False}} if rng.random() < 0.3 else {}
    more |= {"tools": ({"name": "add <|end|>"},)} if rng.random() < 0.3 else {}
    for turn in range(turns):
        if rng.random() < 0.1:
            more = {"template_kwargs": {"enable_thinking": rng.random() < 0.5}}
        if turn == turns // 2 and rng.random() < 0.5:
            messages = messages[: len(messages) // 2 // 2 * 2]
        messages = [*messages, {"role": "user", "content": rng.choice(CONTENTS)}]
        if calls and rng.random() < 0.3:
            messages += [call({"a": 1} if rng.random() < 0.7 else '{"a": 1}'), {"role": "tool", "content": "3"}]
        said = [rng.choice(CONTENTS) for _ in range(rng.randint(1, 2))]
        answers: list[str | Message] = [*said, call({"b": 2})] if calls and rng.random() < 0.2 else [*said]
        done = [Completion(f"{turn}/{i}", a, line=1, complete=rng.random() < 0.8) for i, a in enumerate(answers)]
        if rng.random() < 0.8:
            records.append(Record(str(turn), tuple(messages), tuple(done), **more))
        messages = [*messages, {"role": "assistant", "content": said[0]}]
    return records


def result(template: Encoder, record: Record) -> Encoded | str:
    """What is made of a record, or its error."""
    try:
        return template.encode([record])[0]
    except DataError as error:
        return str(error)


def plain(one: Encoded | str) -> Any:
    if isinstance(one, str):
        return one
    return one.prompt.tolist(), [ids.tolist() for ids in one.completions], one.flaws


def alone(tokenizer: Any, record: Record, special_tokens: SpecialTokens = "text") -> Any:
    """What is made of a record by itself."""
    return plain(result(Encoder(tokenizer, None, special_tokens), copy.deepcopy(record)))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short chats count as long."""
    monkeypatch.setattr(templates, "LONG", 3)
    monkeypatch.setattr(textids, "LONG", 40)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("build", [byte_level, llama_like])
def test_each_turn_is_what_it_is_by_itself(short: None, build: Any, name: str) -> None:
    """For templates in many shapes and random chats with system prompts, tool calls, thoughts, control tokens and
    branches: the ids and the flaws, or the error."""
    tokenizer, printed = build(SHAPES[name]), 0
    for seed in range(8):
        rng = random.Random(seed)
        records = conversation(rng, calls=seed % 2 == 1)
        mode: SpecialTokens = "token" if seed in (2, 3) else "text"
        one_by_one = [alone(tokenizer, r, mode) for r in records]
        template = Encoder(tokenizer, None, mode)
        together = [result(template, r) for r in records]  # arrays of earlier turns must stay as they were
        assert [plain(one) for one in together] == one_by_one
        printed += sum(isinstance(one, Encoded) for one in together)
    assert printed > 0


RESUMED = [
    "CHATML", "LLAMA3", "GEMMA", "PHI3", "COMMAND", "THINKING", "THOUGHT_ALWAYS", "THOUGHT_STRIPPED", "plain",
    "last turn only", "system first", "neighbours", "counts", "switches", "after",
]  # fmt: skip


def rated_chat(turns: int) -> list[Record]:
    """One chat with a rating on each of its turns, which share their messages."""
    messages: list[Message] = []
    records: list[Record] = []
    for i in range(turns):
        messages = [*messages, {"role": "user", "content": f"question {i} of the boat?"}]
        answer = f"answer {i} it is."
        label = i % 2 == 0
        records.append(Record(f"r{i}", tuple(messages), (Completion(f"r{i}/0", answer, label, line=i + 1),)))
        messages = [*messages, {"role": "assistant", "content": answer}]
    return records


class Work:
    """Counts what is done: `messages` printed from the start, `rounds` of a resumable template's loop, `characters`
    tokenised."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.messages = self.rounds = self.characters = 0
        apply, step, ids = templates.apply, templates._Run.step, TextIds.ids

        def counted_apply(tokenizer: Any, messages: list[Any], *rest: Any, **more: Any) -> str:
            self.messages += len(messages)
            return apply(tokenizer, messages, *rest, **more)

        def counted_step(run: Any, number: int, loop: Any) -> None:
            self.rounds += 1
            step(run, number, loop)

        def counted_ids(texts: Any, strings: Any) -> list[list[int]]:
            self.characters += sum(map(len, strings))
            return ids(texts, strings)

        patch.setattr(templates, "apply", counted_apply)
        patch.setattr(templates._Run, "step", counted_step)
        patch.setattr(TextIds, "ids", counted_ids)


@pytest.mark.parametrize("name", RESUMED)
def test_the_work_grows_with_the_turns(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    tokenizer, done = byte_level(SHAPES[name]), []
    for turns in (200, 400):
        with monkeypatch.context() as patch:
            work = Work(patch)
            build_trees(rated_chat(turns), tokenizer, max_length=10**6)
        done.append(work)
    few, many = done
    messages = sum(len(r.prompt) for r in rated_chat(400))
    assert many.messages + many.rounds < 0.1 * messages  # with and without the answer it would be twice that sum
    for kind in ("messages", "rounds", "characters"):
        assert getattr(many, kind) < 2.6 * getattr(few, kind)


def test_the_doctor_counts_each_turn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows beyond the context are printed and tokenised once, not once more to be dropped."""
    records, tokenizer = rated_chat(60), byte_level(CHATML)
    encoded: list[Record] = []
    encode = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, some: (encoded.extend(some), encode(self, some))[1])
    findings = {f.key: f for f in check(records, tokenizer=tokenizer, options=DataOptions(max_length=256)).findings}
    assert encoded == records
    sizes = [len(alone(tokenizer, r)[0]) + len(alone(tokenizer, r)[1][0]) for r in records]
    over = sum(size > 256 for size in sizes)
    assert findings["over_long"].data == {"over_long": over, "dropped": over, "cut_prompt": 0, "cut_completion": 0}
    assert over > 40


def test_prompts_of_one_chat_share_their_memory() -> None:
    prompts = [tree.prompt for tree in build_trees(rated_chat(400), byte_level(CHATML), max_length=10**6)[0]]
    memory = {id(p.base): p.base for p in prompts if p.base is not None}
    assert sum(p.nbytes for p in prompts) > 10_000_000
    assert sum(base.nbytes for base in memory.values()) < 700_000
    assert not any(p.flags.writeable for p in prompts[80:])


def test_a_template_that_prints_something_else_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be printed is compared with what transformers prints."""
    records, tokenizer = rated_chat(60), byte_level(CHATML)
    expected = [alone(tokenizer, r) for r in records]
    render = templates.ResumableTemplate.render
    monkeypatch.setattr(templates.ResumableTemplate, "render", lambda *a: render(*a) + "!")
    template = Encoder(tokenizer)
    assert [plain(one) for one in template.encode(records)] == expected


def test_a_tokenizer_that_reads_pieces_otherwise_is_not_followed(short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    records, tokenizer = rated_chat(30), byte_level(CHATML)
    expected = [alone(tokenizer, r) for r in records]
    cutting = textids.GrowingIds(TextIds(tokenizer))
    assert cutting._cutting
    tokenizer.split_special_tokens = True
    split = [alone(tokenizer, r) for r in records]
    template = Encoder(tokenizer)
    assert [plain(one) for one in template.encode(records)] == split
    assert split != expected


def test_a_text_that_is_lost_stays_lost(short: None) -> None:
    tokenizer = byte_level(CHATML)
    tokenizer.backend_tokenizer.normalizer = normalizers.StripAccents()
    records = rated_chat(20)
    for i in (0, 8):
        said: Message = {"role": "user", "content": "ne\u0301e"}
        changed = [dataclasses.replace(r, prompt=(*r.prompt[:i], said, *r.prompt[i + 1 :])) for r in records[i:]]
        made = [plain(one) for one in Encoder(tokenizer).encode(changed)]
        assert made == [alone(tokenizer, r) for r in changed]
        assert all(Flaw.LOSSY in flaws[0] for *_, flaws in made)


def test_one_text_may_quote_different_tokens(short: None) -> None:
    tokenizer = byte_level(CHATML)
    records: list[Record] = []
    for token in ("<|im_end|>", "<|eot_id|>", "\U000f0000"):
        first: Message = {"role": "user", "content": f"What is {token} for, and is it long enough?"}
        records += [dataclasses.replace(r, prompt=(first, *r.prompt[1:])) for r in rated_chat(8)]
    assert [plain(one) for one in Encoder(tokenizer).encode(records)] == [alone(tokenizer, r) for r in records]


def test_one_text_may_leave_out_different_messages(short: None) -> None:
    tokenizer = byte_level(CHATML.replace("in messages", "in messages if m.role != 'system'"))
    system: Message = {"role": "system", "content": "Be kind."}
    records = [one for r in rated_chat(8) for one in (r, dataclasses.replace(r, prompt=(system, *r.prompt)), r)]
    made = [plain(one) for one in Encoder(tokenizer).encode(records)]
    assert made == [alone(tokenizer, r) for r in records]
    assert [Flaw.UNPRINTED in flaws[0] for *_, flaws in made] == [False, True, False] * 8


def test_the_table_leaves_out_long_turns_that_are_soon_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, records = byte_level(CHATML), rated_chat(60)
    monkeypatch.setattr(dataset, "LARGE", 4000)
    plain = build_trees(records, tokenizer, max_length=10**6)[0]
    lone = dataclasses.replace(records[-1], prompt=({"role": "user", "content": "two " * 2000},))
    asked: list[Record] = []
    encode = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, some: (asked.extend(some), encode(self, some))[1])
    for _ in range(2):
        asked.clear()
        again = build_trees([*records, lone], tokenizer, max_length=10**6, cache=tmp_path)[0]
        assert all(np.array_equal(a.prompt, b.prompt) for a, b in zip(plain, again, strict=False))
    assert 0 < len(asked) < 60
    assert asked == records[-len(asked) :]


def test_long_prompts_are_tokenised_in_small_batches() -> None:
    def batches(sizes: list[int]) -> list[slice]:
        return list(fill(sizes, dataset.CHARACTERS, most=dataset.BATCH))

    assert batches([1] * 2500) == [slice(0, 1000), slice(1000, 2000), slice(2000, 2500)]
    assert batches([3_000_000, 9_000_000, 1, 1]) == [slice(0, 1), slice(1, 2), slice(2, 4)]
    assert batches([]) == []


def test_equal_prompts_are_equal_for_the_schedule() -> None:
    made = build_dataset(rated_chat(40), byte_level(CHATML), "binary", DataOptions())
    digests = [made.prompt(row) for row in made.examples]
    assert len(set(digests)) == 40
    assert made.prompt(made.examples[3]) == digest(made.trees[3].prompt.copy())


def test_the_assistant_of_the_sandbox(short: None) -> None:
    tokenizer = AutoTokenizer.from_pretrained(ASSISTANT)
    for seed in range(4):
        records = conversation(random.Random(seed), calls=False)
        template = Encoder(tokenizer)
        made = [plain(result(template, r)) for r in records]
        assert made == [alone(tokenizer, r) for r in records]


def test_real_tokenizers(short: None, shared: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "models/stories260K")
    for template in (templates.PLAIN, CHATML, THINKING):
        tokenizer.chat_template = template
        records = conversation(random.Random(1), calls=False)
        made_by = Encoder(tokenizer)
        made = [plain(result(made_by, r)) for r in records]
        assert made == [alone(tokenizer, r) for r in records]
