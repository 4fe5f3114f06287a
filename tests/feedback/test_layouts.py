"""Layouts of one answer or one pair per row, on samples as the tools that define them write them."""

from __future__ import annotations

import json
from typing import Any

from prospect.feedback.load import load
from prospect.feedback.records import Completion, Pair, Record
from tests.helpers.feedback import BLUE, GREEN, SKY, SYSTEM, TOOLS, answers, assistant, user

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
    row: dict[str, Any] = {
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
    assert first.completions[0].content == row["completion"][0]
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
    assert feedback.format == "sharegpt-pairs"
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
