"""Chat logs, transcripts, scores and text to imitate, on samples as their tools write them."""

from __future__ import annotations

from prospect.feedback.load import load
from prospect.feedback.records import Completion, Record
from tests.helpers.feedback import BLUE, GREEN, SKY, SYSTEM, answers, assistant, user


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
