"""Which records belong on one side of a split: conversations, near duplicates, and what only looks like them."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prospect.data import split
from prospect.data import split as grouping
from prospect.data.split import (
    NEAR,
    Shingler,
    groups,
    jaccard,
    words,
)
from prospect.data.write import write
from prospect.feedback import records as records_module
from prospect.feedback.load import load
from prospect.feedback.records import Completion, Message, MessageTree, Record

STORY = "Please tell me a long story about a small boat that crossed the wide river at night, and nobody saw it."
RETOLD = "please tell me a long story about a small boat that crossed the wide river at night; and nobody heard it"

TELLING = "Since sugar feeds whoever carries the seeds away."


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def said(text: str) -> Message:
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def chat(*turns: Message, answer: str = "Yes.", **more: Any) -> Record:
    return Record("r", turns, (Completion("c", answer, True),), **more)


def text(prompt: str, answer: str = "Yes.") -> Record:
    return Record("r", prompt, (Completion("c", answer, True),))


def together(*records: Record) -> bool:
    return len(set(groups(records).group)) == 1


def rated_turns(number: int, turns: int = 2) -> dict[str, Any]:
    """A row of chat in which every answer is rated."""
    messages = []
    for turn in range(turns):
        messages += [user(f"Question {turn} about thing {number}?"), said(f"It is {number}, {turn}.") | {"rating": 1}]
    return {"messages": messages}


# What belongs together


def test_rated_turns_of_one_chat(shared: Path) -> None:
    records = load(shared / "cases/rows/h01_two_rated_turns.jsonl").records
    assert sorted(Counter(groups(records).group).values()) == [2] * 30
    assert len(set(groups(records).prompt)) == 60


def test_rated_turns_of_own_chats() -> None:
    found = groups(load([rated_turns(i, 3) for i in range(20)]).records)
    assert sorted(Counter(found.conversation).values()) == [3] * 20
    assert found.conversation == found.group


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(chat(user("a")), chat(user("a"), said("b"), user("c")), id="beginning"),
        pytest.param(
            chat(system("s"), user("a")), chat(system("s"), user("a"), said("b"), user("c")), id="beginning with system"
        ),
        pytest.param(
            chat(system("then"), user("Which fruit?"), answer="A pear."),
            chat(system("now"), user("Which fruit?"), said("A pear."), user("Why so?")),
            id="answer under another system message",
        ),
        pytest.param(
            chat(user("a"), said("b"), user("Which fruit?"), answer="A pear."),
            chat(user("Which fruit?"), said("A pear."), user("Why so?")),
            id="chat cut to its last turns",
        ),
        pytest.param(
            chat(user("Context: fruits are sweet. Question: why?"), answer=TELLING),
            chat(user("why?"), said(TELLING), user("And nuts?")),
            id="telling answer to another wording",
        ),
        pytest.param(
            chat(user("one thing"), conversations=("x",)),
            chat(user("something else"), conversations=("y", "x")),
            id="id",
        ),
        pytest.param(chat(user(STORY)), chat(user(RETOLD)), id="near duplicate"),
        pytest.param(chat(system("a b"), user(STORY)), chat(system("c"), user(RETOLD)), id="near, but for the system"),
        pytest.param(chat(user("What's that?")), chat(user("what's  THAT")), id="typing"),
        pytest.param(chat(user("What is that?")), text("what is that"), id="chat and text"),
        pytest.param(text("User: hi\nBot:"), text("User: hi\nBot: Hello\nUser: why\nBot:"), id="text transcript"),
        pytest.param(text("hi"), text("hi\nHello\nwhy"), id="text up to the end of a line"),
        pytest.param(text("User: hi Bot:", "Hello"), text("User: hi Bot: Hello User: why"), id="text with answer"),
        pytest.param(text("", "The same text."), text("", "the same text"), id="texts without prompts"),
    ],
)  # fmt: skip
def test_what_belongs_together(one: Record, other: Record) -> None:
    assert together(one, other) and together(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(chat(system("s")), chat(system("s"), user("a")), id="system alone"),
        pytest.param(chat(system("s"), said("Hi!")), chat(system("s"), said("Hi!"), user("a")), id="greeting"),
        pytest.param(chat(user("why?"), answer="Yes."), chat(user("how?"), said("Yes."), user("a")), id="short answer"),
        pytest.param(text("What is 2"), text("What is 2 + 2?"), id="a longer question"),
        pytest.param(text("2 + 2 =", "4"), text("2 + 2 = 42, and 3 + 3 ="), id="an answer inside a number"),
        pytest.param(chat(user("12 + 7")), chat(user("12 - 7")), id="arithmetic"),
        pytest.param(chat(user("Tell me fact 1.")), chat(user("Tell me fact 2.")), id="digits"),
        pytest.param(text("", "One text."), text("", "Another text."), id="texts without prompts"),
        pytest.param(chat(user("a"), tools=({"name": "f"},)), chat(user("b"), tools=({"name": "f"},)), id="tools"),
    ],
)
def test_what_only_looks_alike(one: Record, other: Record) -> None:
    assert not together(one, other)


@pytest.mark.parametrize(
    ("one", "near", "other"),
    [
        pytest.param(
            "请你现在给我讲一个关于小船在夜里渡过大河的长故事,谁也没有看见它。",
            "请你现在给我讲一个关于小船在夜里渡过大河的长故事,谁也没有听见它。",
            "请你现在给我讲一个关于老人在山上种下苹果树的长故事,谁也没有看见他。",
            id="Chinese",
        ),
        pytest.param(
            "小さな舟が夜に大きな川を渡ったという長い話をしてください。それを見た人は誰もいませんでした。",
            "小さな舟が夜に大きな川を渡ったという長い話をしてください。それを聞いた人は誰もいませんでした。",
            "小さな女の子が朝に学校へ歩いたという短い話をしてください。それを見た人は多くいました。",
            id="Japanese",
        ),
        pytest.param(
            "ช่วยเล่าเรื่องยาวเกี่ยวกับเรือลำเล็กที่ข้ามแม่น้ำกว้างตอนกลางคืนและไม่มีใครเห็น",
            "ช่วยเล่าเรื่องยาวเกี่ยวกับเรือลำเล็กที่ข้ามแม่น้ำกว้างตอนกลางคืนและไม่มีใครยิน",
            "ช่วยเขียนจดหมายถึงครูของลูกเพื่อขอบคุณที่ดูแลนักเรียนทุกคนอย่างดี",
            id="Thai",
        ),
    ],
)
def test_scripts_without_spaces_are_compared_character_by_character(one: str, near: str, other: str) -> None:
    assert split.near_twins([one, other, near]) == {2: 0}
    assert groups([text(one), text(near), text(other)]).group == (0, 0, 1)


def test_a_word_between_characters_stays_a_word() -> None:
    assert words("用Python写12个函数。") == ["用", "python", "写", "12", "个", "函", "数"]
    assert words("한국어 문장") == ["한국어", "문장"]  # Korean puts spaces


def test_a_phrase_that_answers_several_prompts_joins_none() -> None:
    phrase = "I am sorry, but I cannot help you with this request."
    asks = [chat(user(f"forbidden {i}"), answer=phrase) for i in range(2)]
    goes_on = chat(user("forbidden 9"), said(phrase), user("please"))
    assert len(set(groups([*asks, goes_on]).group)) == 3
    assert len(set(groups([asks[0], goes_on]).group)) == 1


def test_groups_are_transitive_and_nest() -> None:
    records = [chat(user(STORY)), chat(user(RETOLD)), chat(user(RETOLD), said("b"), user("c")), chat(user("other"))]
    found = groups(records)
    assert found.prompt == (0, 1, 2, 3) and found.conversation == (0, 1, 1, 2) and found.group == (0, 0, 0, 1)
    assert groups([]).group == ()


def test_a_template_around_every_prompt_is_no_likeness() -> None:
    form = "You get a review. " + " ".join(f"Rule {i} says be strict about point {i}." for i in range(40)) + " Review: "
    reviews = [f"the {a} was {b} and {c}" for a in ("soup", "room", "bed") for b in ("cold", "old") for c in "vwxyz"]
    assert len(set(groups([text(form + review) for review in reviews]).group)) == len(reviews)
    twice = [*(text(form + review) for review in reviews), text(form + reviews[0].upper() + "!")]
    assert len(set(groups(twice).group)) == len(reviews)


def planted(families: int, size: int, length: int = 30) -> list[str]:
    """`families` random texts, each `size` times with one of its words changed."""
    draw = random.Random(0)
    found = []
    for _ in range(families):
        base = [f"w{draw.randrange(500)}" for _ in range(length)]
        for _ in range(size):
            changed = list(base)
            changed[draw.randrange(length)] = f"v{draw.randrange(500)}"
            found.append(" ".join(changed))
    return found


def test_near_duplicates_are_those_of_all_pairs() -> None:
    """Against the definition, without hashing."""
    texts = planted(60, 5, 80)
    shingle = Shingler()
    sets = [shingle(words(t)) for t in texts]
    found = groups([text(t) for t in texts]).group
    pairs = [(i, j) for i in range(len(texts)) for j in range(i) if jaccard(sets[i], sets[j]) >= NEAR]
    assert len(pairs) > 300 and all(found[i] == found[j] for i, j in pairs)
    assert len(set(found)) >= 60  # no family meets another


# The order of the file, and time


names = st.sampled_from(["yes", "no", "why", "what is that", "tell me more", STORY, RETOLD])
turns = st.lists(names, min_size=1, max_size=4)


@given(st.lists(st.tuples(turns, names), min_size=1, max_size=40), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_the_order_of_the_records_plays_no_part(drawn: list[tuple[list[str], str]], shuffle: random.Random) -> None:
    records = [
        chat(*(said(t) if i % 2 else user(t) for i, t in enumerate((*turns, "?")[: len(turns) | 1])), answer=answer)
        for turns, answer in drawn
    ]
    order = list(range(len(records)))
    shuffle.shuffle(order)
    one, other = groups(records), groups([records[i] for i in order])
    for a, b in ((one.conversation, other.conversation), (one.group, other.group)):
        assert len({(a[i], b[place]) for place, i in enumerate(order)}) == len(set(a)) == len(set(b))


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[int]:
    """How often a function is called from now on, and with how much."""
    calls, original = [0, 0], getattr(module, name)

    def count(argument: Any, *rest: Any) -> Any:
        calls[0] += 1
        calls[1] += len(argument)
        return original(argument, *rest)

    monkeypatch.setattr(module, name, count)
    return calls


def test_a_chat_of_many_rated_turns_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written as JSON, and what is cut into words, grows with the messages and not with their prompts."""
    work = []
    for size in (200, 400):
        with monkeypatch.context() as patch:
            dumped, cut = counted(patch, records_module, "dumps"), counted(patch, grouping, "words")
            records = load([rated_turns(1, size)]).records
            assert len(set(groups(records).group)) == 1
            work.append((dumped[0], dumped[1], cut[0], cut[1]))
    assert all(0 < more <= 2.2 * less for less, more in zip(*work, strict=True))


@pytest.mark.parametrize("spread", ["all alike", "families", "half alike"])
def test_comparisons_grow_with_the_texts(monkeypatch: pytest.MonkeyPatch, spread: str) -> None:
    work = []
    for size in (400, 800):
        texts = {
            "all alike": lambda size: planted(1, size),
            "families": lambda size: planted(size // 4, 4),
            "half alike": lambda size: [
                " ".join(planted(1, 1, 40) + [f"x{i} y{i} z{i}" for i in [k] * 4]) for k in range(size)
            ],
        }[spread](size)
        with monkeypatch.context() as patch:
            compared = counted(patch, split, "jaccard")
            groups([text(t) for t in texts])
            work.append(compared[0])
    assert work[1] <= 2.5 * work[0] + 100 and work[1] <= 9 * 800


def test_the_tree_tells_prompts_apart_as_their_json_does() -> None:
    tree = MessageTree()
    one, same = (user("a"), said("b")), (dict(user("a")), dict(said("b")))
    assert tree.add(one) == tree.add(same) != tree.add((user("a"),))
    assert tree.add(({"role": "user", "content": "a", "n": 1},)) != tree.add(
        ({"role": "user", "content": "a", "n": True},)
    )
    assert tree.add("a") != tree.add((user("a"),))


# Ids of conversations in files


@pytest.mark.parametrize("column", ["conversation_id", "chat_id", "thread_id", "session_id"])
def test_ids_are_read_and_kept(column: str, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{word}?", "completion": "x", "label": True, column: place}
        for word, place in (("one", "k1"), ("two", "k2"), ("three", "k1"), ("four", None), ("five", ""))
    ]
    feedback = load([*rows, {"prompt": "one?", "completion": "y", "label": False, column: "k2"}])
    assert feedback.notes == ()
    prefix = "" if column == "conversation_id" else f"{column} "
    assert feedback.records[0].conversations == (f"{prefix}k1", f"{prefix}k2")  # one prompt in two conversations
    assert groups(feedback.records).group == (0, 0, 0, 1, 2)
    write(feedback.records, tmp_path / "again.jsonl")
    assert load(tmp_path / "again.jsonl").records == feedback.records
    assert feedback.digest != load([{k: v for k, v in row.items() if k != column} for row in rows]).digest


def test_ids_of_two_kinds_are_two_ids() -> None:
    rows = [
        {"prompt": "one?", "completion": "x", "label": True, "session_id": 7},
        {"prompt": "two?", "completion": "x", "label": True, "thread_id": 7.0},
        {"prompt": "three?", "completion": "x", "label": True, "session_id": "7"},
    ]
    assert groups(load(rows).records).group == (0, 1, 0)
