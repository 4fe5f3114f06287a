"""Every layout, on samples as the tools that define them write them; merging, ids, round trips."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prospect.errors import DataError
from prospect.feedback.formats import FORMATS, Feedback, digest, load, merge, write, write_problems
from prospect.feedback.layouts import LAYOUTS
from prospect.feedback.records import Completion, Pair, Record


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str, **rest: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **rest}


def answers(feedback: Feedback) -> list[tuple[Any, Any, Any]]:
    """(prompt, content, label) of every completion."""
    return [(r.prompt, c.content, c.label) for r in feedback.records for c in r.completions]


SYSTEM = {"role": "system", "content": "Be brief."}
SKY, BLUE, GREEN = (user("What colour is the sky?"),), "It is blue.", "It is green."
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


# Prospect's own


def test_prospect_line() -> None:
    line = {
        "id": "sky",
        "prompt": [*SKY],
        "completions": [
            {"id": "good one", "content": BLUE, "label": True, "score": 0.9, "weight": 2},
            {"content": GREEN, "label": False, "complete": False},
            {"message": assistant("", tool_calls=[{"type": "function", "function": {"name": "look"}}])},
            "Blue.",
        ],
        "pairs": [[0, 1], {"chosen": 0, "rejected": 2, "weight": 0.5}],
        "source": "survey",
        "tools": TOOLS,
        "template_kwargs": {"enable_thinking": False},
    }
    feedback = load([line])
    assert feedback.format == "prospect"
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "look"}}]}
    assert feedback.records == (
        Record(
            id="sky",
            prompt=SKY,
            completions=(
                Completion("good one", BLUE, True, 0.9, 2.0),
                Completion("sky/1", GREEN, False, complete=False),
                Completion("sky/2", call),
                Completion("sky/3", "Blue."),
            ),
            pairs=(Pair(0, 1), Pair(0, 2, 0.5)),
            source="survey",
            tools=tuple(TOOLS),
            template_kwargs={"enable_thinking": False},
        ),
    )


def test_prospect_file_may_mix_records_and_flat_lines() -> None:
    feedback = load(
        [
            {"prompt": "2 + 2?", "completions": [{"content": "4", "label": "up"}]},
            {"prompt": "2 + 2?", "completion": "5", "label": "down"},
            {"prompt": "3 + 3?", "completion": "6", "score": 0.5},
            {"prompt": "", "completions": [{"content": "A text."}]},
        ]
    )
    assert feedback.format == "prospect"
    assert [[(c.content, c.label, c.score) for c in r.completions] for r in feedback.records] == [
        [("4", True, None), ("5", False, None)],
        [("6", None, 0.5)],
        [("A text.", None, None)],
    ]


# TRL


def test_trl_unpaired_standard() -> None:
    feedback = load(
        [
            {"prompt": "The sky is", "completion": " blue.", "label": True},
            {"prompt": "The sun is", "completion": " in the sky.", "label": False},
        ]
    )
    assert feedback.format == "unpaired"
    assert answers(feedback) == [("The sky is", " blue.", True), ("The sun is", " in the sky.", False)]


def test_trl_unpaired_conversational_with_tools_and_template_keywords() -> None:
    row = {
        "prompt": [user("Weather in Oslo?")],
        "completion": [
            {
                "role": "assistant",
                "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}],
            }
        ],
        "label": True,
        "tools": json.dumps(TOOLS),
        "chat_template_kwargs": {"enable_thinking": False},
    }
    thinking = {**row, "completion": [assistant("Cold.")], "label": False, "chat_template_kwargs": {"x": 1}}
    feedback = load([row, {**row, "completion": [assistant("Cold.")], "label": False}, thinking])
    assert feedback.format == "unpaired"
    assert len(feedback.records) == 2  # the same words under other template keywords are another prompt
    first = feedback.records[0]
    assert first.tools == tuple(TOOLS)
    assert first.template_kwargs == {"enable_thinking": False}
    assert first.completions[0].content == row["completion"][0]  # type: ignore[index]
    assert first.completions[1].content == "Cold."


def test_trl_paired_standard() -> None:
    feedback = load([{"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}])
    assert feedback.format == "paired"
    assert feedback.records == (
        Record(
            "line1",
            "The sky is",
            (Completion("line1/chosen", " blue."), Completion("line1/rejected", " green.")),
            (Pair(0, 1),),
        ),
    )


def test_trl_paired_conversational() -> None:
    row = {"prompt": [*SKY], "chosen": [assistant(BLUE)], "rejected": [assistant(GREEN)]}
    (record,) = load([row]).records
    assert record.prompt == SKY
    assert [c.content for c in record.completions] == [BLUE, GREEN]


def test_trl_implicit_prompt_is_what_two_conversations_share() -> None:
    lead = [SYSTEM, user("Hi"), assistant("Hello."), user("What colour is the sky?")]
    row = {
        "chosen": [*lead, assistant(BLUE)],
        "rejected": [*lead, assistant(GREEN)],
        "score_chosen": 9.0,
        "score_rejected": 2,
    }
    (record,) = load([row]).records
    assert record.prompt == tuple(lead)
    assert [(c.content, c.score) for c in record.completions] == [(BLUE, 9.0), (GREEN, 2.0)]
    # the same answer twice is still an answer, not a part of the prompt
    (same,) = load([{"chosen": [*SKY, assistant(BLUE)], "rejected": [*SKY, assistant(BLUE)]}]).records
    assert same.prompt == SKY
    assert [c.content for c in same.completions] == [BLUE, BLUE]
    assert same.pairs == (Pair(0, 1),)


def test_prompt_beside_whole_conversations() -> None:
    """As ultrafeedback_binarized writes it: the prompt as text, the sides with the prompt in them."""
    sides = {"chosen": [*SKY, assistant(BLUE)], "rejected": [*SKY, assistant(GREEN)]}
    expected = load([sides]).records
    feedback = load([{"prompt": SKY[0]["content"], "prompt_id": "ab12", "messages": sides["chosen"], **sides}])
    assert feedback.records == expected
    assert feedback.notes == ("columns not read: prompt_id",)
    assert load([{"prompt": [*SKY], **sides}]).records == expected


# HALOs


def test_halos_binary() -> None:
    row = {"prompt_id": "5f1d", "prompt": [*SKY], "type": "binary_feedback"}
    feedback = load(
        [
            {**row, "output": [assistant(BLUE)], "label": 1, "reward": 3.25},
            {**row, "output": [assistant(GREEN)], "label": 0, "reward": -1.5},
        ]
    )
    assert feedback.format == "halos"
    (record,) = feedback.records
    assert record.prompt == SKY
    assert [(c.content, c.label, c.score) for c in record.completions] == [(BLUE, True, 3.25), (GREEN, False, -1.5)]


def test_halos_scalar() -> None:
    row = {"prompt": [*SKY], "output": [assistant(BLUE)], "reward": 3, "type": "scalar_feedback"}
    assert load([row]).records[0].completions == (Completion("line1", BLUE, score=3.0),)


def test_halos_pairwise() -> None:
    row = {"prompt_id": "5f1d", "prompt": [*SKY], "type": "pairwise_feedback", "reward_difference": 4.75}
    a = {"output_A": [assistant(BLUE)], "reward_A": 3.25, "output_B": [assistant(GREEN)], "reward_B": -1.5, "label": 1}
    b = {"output_A": [assistant(GREEN)], "reward_A": -1.5, "output_B": [assistant(BLUE)], "reward_B": 3.25, "label": 0}
    for sides in (a, b):
        feedback = load([{**row, **sides}])
        assert feedback.format == "halos-pairs"
        (record,) = feedback.records
        (pair,) = record.pairs
        assert (record.completions[pair.chosen].content, record.completions[pair.chosen].score) == (BLUE, 3.25)
        assert (record.completions[pair.rejected].content, record.completions[pair.rejected].score) == (GREEN, -1.5)


# LLaMA-Factory


def test_llamafactory_alpaca_with_kto_tag() -> None:
    row = {
        "instruction": "Translate.",
        "input": "bonjour",
        "system": "Be brief.",
        "history": [["Hi", "Hello."]],
        "output": "good day",
    }
    feedback = load([{**row, "kto_tag": True}, {**row, "output": "cheese", "kto_tag": False}])
    assert feedback.format == "alpaca"
    prompt = (SYSTEM, user("Hi"), assistant("Hello."), user("Translate.\nbonjour"))
    assert answers(feedback) == [(prompt, "good day", True), (prompt, "cheese", False)]


def test_llamafactory_alpaca_pairs_and_plain() -> None:
    (record,) = load([{"instruction": "2 + 2?", "input": "", "chosen": "4", "rejected": "5"}]).records
    assert record.prompt == (user("2 + 2?"),)
    assert record.pairs == (Pair(0, 1),)
    plain = load([{"instruction": "2 + 2?", "input": "", "output": "4"}])
    assert answers(plain) == [((user("2 + 2?"),), "4", None)]


def test_llamafactory_sharegpt_with_kto_tag() -> None:
    turns = [
        {"from": "human", "value": "Weather in Oslo?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
        {"from": "observation", "value": "-3"},
        {"from": "gpt", "value": "Cold."},
    ]
    row = {"conversations": turns, "system": "Be brief.", "tools": json.dumps(TOOLS), "kto_tag": True}
    feedback = load([row])
    assert feedback.format == "sharegpt"
    (record,) = feedback.records
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    assert record.prompt == (
        SYSTEM,
        user("Weather in Oslo?"),
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "-3"},
    )
    assert record.completions == (Completion("line1", "Cold.", True),)
    assert record.tools == tuple(TOOLS)


def test_llamafactory_kto_demo_layout() -> None:
    """LLaMA-Factory's own KTO demo: OpenAI's keys, and the thumb of the last answer beside them."""
    feedback = load([{"messages": [*SKY, assistant(BLUE)], "label": True}])
    assert feedback.format == "messages"
    assert answers(feedback) == [(SKY, BLUE, True)]


def test_llamafactory_preferences() -> None:
    chat = [{"from": "human", "value": "What colour is the sky?"}]
    sides = {"chosen": {"from": "gpt", "value": BLUE}, "rejected": {"from": "gpt", "value": GREEN}}
    feedback = load([{"conversations": chat, **sides}])
    assert feedback.format == "sharegpt"
    assert feedback.records[0].prompt == SKY
    assert [c.content for c in feedback.records[0].completions] == [BLUE, GREEN]
    assert load([{"messages": [*SKY], **sides}]).records == feedback.records


def test_sharegpt_without_judgement_imitates_every_answer() -> None:
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}] * 2
    records = load([{"conversations": turns, "tools": "[]"}]).records
    assert records[0].tools is None
    assert [(len(r.prompt), r.completions[0].content, r.id) for r in records] == [
        (1, "b", "line1/turn2"),
        (3, "b", "line1/turn4"),
    ]


# Chat logs, transcripts, scores, SFT


def test_openai_messages_with_a_rating_on_any_turn() -> None:
    log = [
        SYSTEM,
        user("What colour is the sky?"),
        assistant(GREEN, rating="down"),
        user("Sure?"),
        assistant("Let me see."),
        user("So?"),
        assistant(BLUE, rating="up", weight=2),
    ]
    feedback = load([{"messages": log, "id": "chat7"}, {"messages": [*SKY, assistant("Unjudged.")]}])
    bare = [{k: v for k, v in m.items() if k in ("role", "content")} for m in log]
    assert feedback.format == "messages"
    assert feedback.records == (
        Record("chat7/turn3", tuple(bare[:2]), (Completion("chat7/turn3", GREEN, False),)),
        Record("chat7/turn7", tuple(bare[:6]), (Completion("chat7/turn7", BLUE, True, weight=2.0),)),
    )
    assert feedback.notes == ("1 of 2 conversations have no judged answer and were left out",)


def test_openai_messages_with_scores() -> None:
    feedback = load([{"messages": [*SKY, assistant(BLUE, score=4.5)]}])
    assert feedback.records[0].completions == (Completion("line1/turn2", BLUE, score=4.5),)


def test_messages_for_sft_train_every_answer_but_a_greeting() -> None:
    log = [SYSTEM, assistant("Welcome."), user("a"), assistant("b"), user("c"), assistant("d")]
    records = load([{"messages": log}]).records
    assert [(len(r.prompt), r.completions[0].content) for r in records] == [(3, "b"), (5, "d")]


def test_system_column_comes_before_the_turns() -> None:
    log = [user("a"), assistant("b", rating="up"), user("c"), assistant("d", rating="down")]
    records = load([{"messages": log, "system": "Be brief."}]).records
    assert [r.prompt for r in records] == [
        (SYSTEM, user("a")),
        (SYSTEM, user("a"), assistant("b"), user("c")),
    ]


def test_nulls_in_messages_are_absent_keys() -> None:
    rows = [{"prompt": [{**user("a"), "name": None}], "completion": "1"}, {"prompt": [user("a")], "completion": "2"}]
    (record,) = load(rows).records
    assert record.prompt == (user("a"),)


def test_content_in_parts_is_joined() -> None:
    parts = [{"type": "text", "text": "What colour "}, {"type": "text", "text": "is the sky?"}]
    assert load([{"messages": [{"role": "user", "content": parts}, assistant(BLUE)]}]).records[0].prompt == SKY


def test_anthropic_hh() -> None:
    lead = "\n\nHuman: What's a prank?\n\nA good one.\n\nAssistant: Hm.\n\nHuman: Well?\n\nAssistant:"
    feedback = load([{"chosen": f"{lead} A whoopee cushion.", "rejected": f"{lead} No.\n"}])
    assert feedback.format == "hh"
    (record,) = feedback.records
    assert record.prompt == (user("What's a prank?\n\nA good one."), assistant("Hm."), user("Well?"))
    assert [(c.id, c.content) for c in record.completions] == [
        ("line1/chosen", "A whoopee cushion."),
        ("line1/rejected", "No."),
    ]


def test_scores() -> None:
    feedback = load([{"prompt": "a", "completion": "b", "score": 1}, {"prompt": "a", "completion": "c", "score": 0.5}])
    assert feedback.format == "scores"
    assert [(c.score, c.label) for c in feedback.records[0].completions] == [(1.0, None), (0.5, None)]


def test_prompt_completion_and_text() -> None:
    assert load([{"prompt": "a", "completion": "b"}]).format == "prompt-completion"
    feedback = load([{"text": "Once."}, {"text": "Twice."}, {"text": "Once."}])
    assert feedback.format == "text"
    assert answers(feedback) == [("", "Once.", None), ("", "Twice.", None), ("", "Once.", None)]
    assert len(feedback.records) == 3  # nothing is shared by beginning with nothing


# Detection


def test_every_layout_is_detected_before_those_it_contains() -> None:
    names = list(LAYOUTS)
    for i, layout in enumerate(LAYOUTS.values()):
        for later in names[i + 1 :]:
            assert not set(LAYOUTS[later].needs) > set(layout.needs), (layout.name, later)
    assert ("auto", *names) == FORMATS


def test_format_can_be_forced() -> None:
    rows = [{"prompt": "a", "completion": "b", "text": "ab"}]
    assert load(rows).format == "prompt-completion"
    assert load(rows, format="text").records[0].completions[0].content == "ab"


def test_columns_of_all_rows_decide() -> None:
    rows: list[dict[str, Any]] = [{"messages": [*SKY, assistant(BLUE)]}, {"messages": [*SKY, assistant(GREEN)]}]
    rows[1]["tools"] = TOOLS
    assert [r.tools is None for r in load(rows).records] == [True, False]


def test_the_docs_name_every_layout_and_their_example_loads() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "data-format.md").read_text()
    assert [name for name in LAYOUTS if f"| `{name}` |" not in page] == []
    example = page.split("```json\n")[1].split("```")[0]
    (record,) = load([json.loads(example)]).records
    assert [(c.label, c.score, c.weight, c.complete) for c in record.completions] == [
        (True, None, 1.0, True),
        (False, None, 2.0, True),
        (None, 0.4, 1.0, False),
    ]


# One prompt, one record; ids


def test_same_prompt_from_different_lines_is_one_record() -> None:
    rows = [
        {"prompt": "a", "completion": "1", "label": True, "source": "x"},
        {"prompt": "b", "completion": "2", "label": True},
        {"prompt": "a", "completion": "3", "label": False, "source": "y"},
        {"prompt": "a", "completion": "1", "label": True},
        {"prompt": [user("a")], "completion": "4", "label": True},
    ]
    feedback = load(rows)
    assert [(r.id, [c.id for c in r.completions]) for r in feedback.records] == [
        ("line1", ["line1", "line3", "line4"]),  # line 4 says the same again: a second thumb, for the doctor to count
        ("line2", ["line2"]),
        ("line5", ["line5"]),
    ]
    assert feedback.records[0].source == "x"


def test_order_of_message_keys_makes_no_other_prompt() -> None:
    rows = [
        {"prompt": [{"role": "user", "content": "a"}], "completion": "1"},
        {"prompt": [{"content": "a", "role": "user"}], "completion": "2"},
    ]
    assert len(load(rows).records) == 1


def test_an_answer_in_several_pairs_is_one_completion() -> None:
    rows = [
        {"prompt": "a", "chosen": "best", "rejected": "fair"},
        {"prompt": "a", "chosen": "fair", "rejected": "bad"},
        {"prompt": "a", "chosen": "best", "rejected": "bad", "weight": 2},
    ]
    (record,) = load(rows).records
    assert [c.content for c in record.completions] == ["best", "fair", "bad"]
    assert record.pairs == (Pair(0, 1), Pair(1, 2), Pair(0, 2, 2.0))
    assert [c.id for c in record.completions] == ["line1/chosen", "line1/rejected", "line2/rejected"]


def test_pairs_of_equal_answers_keep_two_completions() -> None:
    rows = [
        {"prompt": "a", "chosen": "same", "rejected": "same"},
        {"prompt": "a", "chosen": "same", "rejected": "same"},
    ]
    (record,) = load(rows).records
    assert all(pair.chosen != pair.rejected for pair in record.pairs)
    assert len(record.pairs) == 2


def test_nothing_merges_where_labels_or_scores_differ() -> None:
    def line(**judged: Any) -> dict[str, Any]:
        return {"prompt": "a", "completions": [{"content": "x", **judged}, {"content": "y"}], "pairs": [[0, 1]]}

    (record,) = load([line(label=True), line(label=False), line(score=1.0), line(label=True)]).records
    assert [(c.label, c.score) for c in record.completions] == [
        (True, None),
        (None, None),
        (False, None),
        (None, 1.0),
    ]
    assert record.pairs == (Pair(0, 1), Pair(2, 1), Pair(3, 1), Pair(0, 1))


def test_ids_are_the_given_ones_and_stay_unique() -> None:
    rows = [
        {"id": "q", "prompt": "a", "completion": "1"},
        {"id": "q", "prompt": "b", "completion": "2"},
        {"id": 7, "prompt": "b", "completion": "3"},
        {"id": "q", "prompt": "c", "completion": "4"},
    ]
    assert [(r.id, [c.id for c in r.completions]) for r in load(rows).records] == [
        ("q", ["q"]),
        ("q#2", ["q#2", "7"]),
        ("q#3", ["q#3"]),
    ]


# Round trips


SAMPLES: dict[str, list[dict[str, Any]]] = {
    "thumbs": [{"prompt": "a", "completion": "1", "label": True, "weight": 0.5}] * 2,
    "pairs": [{"prompt": [*SKY], "chosen": BLUE, "rejected": GREEN, "weight": 2, "tools": TOOLS}] * 2,
    "chat": [{"messages": [*SKY, assistant(BLUE, rating=1), user("\u2028"), assistant("", rating=-1)]}],
    "text": [{"text": "Once."}, {"text": "Twice 👍."}],
    "calls": [{"prompt": [*SKY], "completion": [{"role": "assistant", "tool_calls": [{"x": 1}]}], "label": 0}],
}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_written_records_load_again(tmp_path: Path, name: str, suffix: str) -> None:
    feedback = load(SAMPLES[name])
    path = tmp_path / f"out.{suffix}"
    write(feedback.records, path)
    again = load(path)
    assert again.records == feedback.records
    assert again.digest == feedback.digest == digest(feedback.records)
    assert again.format == "prospect"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


texts = st.text(st.characters(codec="utf-8"), max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False)
completions = st.builds(
    Completion,
    id=texts.filter(bool),
    content=texts | st.builds(lambda c, n: assistant(c, name=n), texts, texts),
    label=st.none() | st.booleans(),
    score=st.none() | numbers,
    weight=numbers.map(abs),
    complete=st.booleans(),
)
chats = st.lists(st.builds(user, texts.filter(lambda t: bool(t.strip()))), min_size=1, max_size=3).map(tuple)


@st.composite
def records(draw: st.DrawFn) -> Record:
    prompt = draw(chats)
    done = draw(st.lists(completions, min_size=1, max_size=3))
    side = st.integers(0, len(done) - 1)
    pairs = draw(st.lists(st.builds(Pair, side, side, numbers.map(abs)), max_size=2))
    tools = draw(st.none() | st.just(tuple(TOOLS)))
    return Record(draw(texts.filter(bool)), prompt, tuple(done), tuple(pairs), draw(texts), tools)


@settings(max_examples=100, deadline=None)
@given(st.lists(records(), min_size=1, max_size=4).map(merge))
def test_any_records_survive_a_round_trip(tmp_path_factory: pytest.TempPathFactory, held: tuple[Record, ...]) -> None:
    path = tmp_path_factory.mktemp("round") / "a.jsonl"
    write(held, path)
    assert load(path).records == held


def test_packed_files_have_the_same_bits_every_time(tmp_path: Path) -> None:
    held = load(SAMPLES["thumbs"]).records
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write(held, tmp_path / name)
    packed = (tmp_path / "a.jsonl.gz").read_bytes()
    assert packed == (tmp_path / "b.jsonl.gz").read_bytes()
    assert packed[3:8] == bytes(5)  # no file name, no time of day
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()).count(b"\n") == len(held)


def test_digest_tells_feedback_apart() -> None:
    rows = [{"prompt": "a", "completion": "1", "label": True}]
    assert load(rows).digest == load([dict(rows[0])]).digest
    assert load(rows).digest != load([{**rows[0], "label": False}]).digest


def test_write_leaves_the_old_file_where_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("old")

    def broken() -> Any:
        yield from load(SAMPLES["thumbs"]).records
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"a\.jsonl: cannot be written: No space left on device"):
        write(broken(), path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_write_puts_the_whole_file_in_place_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("old")

    def refuse(draft: Path, target: Path) -> None:
        assert draft.read_bytes().count(b"\n") == 1
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(DataError, match="cannot be written"):
        write(load(SAMPLES["thumbs"]).records, path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("where", ["missing/a.jsonl", "file/a.jsonl", "."])
def test_write_to_where_nothing_can_be(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write([], tmp_path / where)


def test_bad_rows_are_written_with_their_reasons(tmp_path: Path) -> None:
    source, good, bad = tmp_path / "in.jsonl", tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    source.write_text(
        '{"prompt": "a", "completion": "b", "label": true}\n'
        '{"prompt": "a", "completion": "c", "label": null}\n'
        '{"prompt": "a", "completion'
    )
    feedback = load(source, keep_going=True)
    write(feedback.records, good)
    write_problems(feedback.problems, bad)
    assert load(good).records == feedback.records
    found = [json.loads(line) for line in bad.read_text().splitlines()]
    assert [(row["line"], row["row"]) for row in found] == [
        (2, {"prompt": "a", "completion": "c", "label": None}),
        (3, '{"prompt": "a", "completion'),
    ]
    assert "label is null" in found[0]["reason"]
    assert "broken JSON at column" in found[1]["reason"]
