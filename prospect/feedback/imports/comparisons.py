"""Public data in which two answers to a prompt stand side by side: Chatbot Arena, HelpSteer's preferences, SHP and
PKU-SafeRLHF.

The better answer and the other one are a pair; two that are both bad are two thumbs down. Ties say nothing. What a
prompt of text holds is a user's message, since all of these are chats.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from prospect.errors import DataError
from prospect.feedback import messages as chat
from prospect.feedback.imports.common import api_message, list_of, look_up, origin
from prospect.feedback.imports.langsmith import JUDGED_BY_MODEL
from prospect.feedback.readers import ORIGIN_COLUMNS, FeedbackLine, Layout, LeftOut, identifier, number, weight
from prospect.feedback.records import Message, Pair, Prompt, Record

TIE = "a tie: neither answer is said to be the better one"


class Answer(NamedTuple):
    """One of several answers to a prompt, with its name behind the line's id and its origin."""

    name: str
    content: str | Message
    label: bool | None = None
    score: float | None = None
    origin: Mapping[str, Any] = {}


def answers_record(
    line: FeedbackLine, prompt: Prompt, answers: Sequence[Answer], pairs: Sequence[Pair] = (), id: str = ""
) -> Record:
    """A record of several answers. The line's own weight is that of its pairs, and of its answers where it has none."""
    id, own = id or line.id, {key: line.values[key] for key in ("complete", *ORIGIN_COLUMNS) if key in line.values}
    if not pairs:
        own["weight"] = line.get("weight")
    completions = tuple(
        line.completion(f"{id}/{a.name}", a.content, a.label, a.score, {**own, **a.origin}) for a in answers
    )
    row_weight = weight(line.values)
    pairs = tuple(Pair(p.chosen, p.rejected, p.weight * row_weight) for p in pairs)
    return line.record(chat.with_text(prompt) if isinstance(prompt, tuple) else prompt, completions, pairs, id=id)


def question(value: Any, where: str) -> tuple[Message, ...]:
    """A prompt of text as a user's message."""
    return chat.with_text(({"role": "user", "content": chat.plain_text(value, where)},), where)


# Chatbot Arena: conversations with two models, and the winner

Outcome = Literal["a", "b", "tie", "both bad"]

_WINNERS: dict[Any, Outcome] = {
    "model_a": "a",
    "model_b": "b",
    "tie": "tie",
    "tie (bothbad)": "both bad",
    "both_bad": "both bad",
    "bothbad": "both bad",
}
_FLAGS = {1: True, 0: False, "1": True, "0": False, "1.0": True, "0.0": False, "true": True, "false": False}


def arena(line: FeedbackLine) -> list[Record]:
    """A battle with whole conversations (33k, 100k, 140k, and the judgements of MT-Bench, whose `turn` is judged)."""
    judge = line.get("judge")
    by = " ".join(map(str, judge)) if isinstance(judge, list) else judge
    by_model = isinstance(by, str) and by.startswith("gpt")
    if not line.judgements.counts(by_model=by_model):
        raise LeftOut(JUDGED_BY_MODEL if by_model else "judged by a person")
    outcome = look_up(_WINNERS, line.get("winner"), "winner")
    sides = [_conversation(line, f"conversation_{side}") for side in "ab"]
    origin_values = {"by": by, "at": line.get("tstamp") or line.get("timestamp")}
    return _battle(line, sides, outcome, origin_values, line.get("evaluation_session_id"))


def _conversation(line: FeedbackLine, column: str) -> list[Message]:
    """The turns of one side, up to the answer that is judged."""
    turns = [api_message(turn, f"{column}: message {i}") for i, turn in enumerate(list_of(line.get(column), column), 1)]
    answers = [i for i, turn in enumerate(turns, 1) if turn["role"] == "assistant"]
    judged = line.get("turn")
    if isinstance(judged, int) and 0 < judged < len(answers):
        turns = turns[: answers[judged - 1]]
    if not turns:
        raise DataError(f"{column} has no messages")
    return turns


def arena_table(line: FeedbackLine) -> list[Record]:
    """A battle of the 55k: lists of prompts and of responses, and a flag per outcome."""
    flags: dict[Outcome, str] = {"a": "winner_model_a", "b": "winner_model_b", "tie": "winner_tie"}
    outcomes = [outcome for outcome, column in flags.items() if _flag(line, column)]
    if len(outcomes) != 1:
        raise DataError(f"exactly one of {', '.join(flags.values())} must be 1, and {len(outcomes)} are")
    prompts = list_of(line.get("prompt"), "prompt")
    sides = []
    for column in ("response_a", "response_b"):
        responses = list_of(line.get(column), column)
        if None in prompts or None in responses:
            raise LeftOut("a turn is null: the question or its answer is not in the data")
        if len(prompts) != len(responses) or not prompts:
            raise DataError(f"prompt and {column} must be lists of as many turns, not of {len(prompts)} and "
                            f"{len(responses)}")  # fmt: skip
        turns: list[Message] = []
        for asked, reply in zip(prompts, responses, strict=True):
            turns.append({"role": "user", "content": chat.plain_text(asked, "prompt")})
            turns.append({"role": "assistant", "content": chat.plain_text(reply, column)})
        sides.append(turns)
    return _battle(line, sides, outcomes[0], {}, None)


def _flag(line: FeedbackLine, column: str) -> bool:
    value = line.get(column)
    return value if isinstance(value, bool) else value is not None and look_up(_FLAGS, value, column)


def _battle(
    line: FeedbackLine, sides: Sequence[list[Message]], outcome: Outcome, origin_values: Mapping[str, Any], session: Any
) -> list[Record]:
    """The records of a battle: one where both sides answer the same prompt, else one for each."""
    if outcome == "tie":
        raise LeftOut(TIE)
    id = identifier(line.get("question_id"), line.id, "question_id")
    prompts = [tuple(turns[:-1]) for turns in sides]
    one_prompt = prompts[0] == prompts[1]
    answers = []
    for name, (*_, last) in zip("ab", sides, strict=True):
        label = None if one_prompt and outcome != "both bad" else outcome == name
        values = origin(line, **origin_values, model=line.get(f"model_{name}"), conversation=session)
        answers.append(Answer(name, chat.answer(last, f"the last of side {name}"), label, None, values))
    if one_prompt:
        pairs = {"a": (Pair(0, 1),), "b": (Pair(1, 0),)}.get(outcome, ())
        return [answers_record(line, prompts[0], answers, pairs, id)]
    line.remark("a battle of several turns in which the sides differ before their last answers: thumbs, and no pair")
    return [
        answers_record(line, prompt, [answer], id=f"{id}/{answer.name}")
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


# A preference from -3 (the first is much better) to 3


def _preferred(line: FeedbackLine, column: str) -> tuple[Pair, ...]:
    strength = number(line.values, column)
    if strength is None:
        raise LeftOut(f"no {column}")
    if abs(strength) > 3:
        raise DataError(f"{column} must be from -3 (the first is much better) to 3, not {strength:g}")
    if strength == 0:
        raise LeftOut(TIE)
    return (Pair(0, 1, -strength) if strength < 0 else Pair(1, 0, strength),)


_MARK = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


def helpsteer_prompt(value: Any) -> tuple[Message, ...]:
    """HelpSteer's prompt; earlier turns stand in it behind marks."""
    first, *rest = _MARK.split(chat.plain_text(value, "prompt"))
    turns = [("User", first), *zip(rest[::2], rest[1::2], strict=True)]
    roles = {"User": "user", "Assistant": "assistant"}
    return chat.with_text(tuple({"role": roles[by], "content": text} for by, text in turns if text.strip()))


def helpsteer2(line: FeedbackLine) -> list[Record]:
    """HelpSteer 2's preferences; how strong one is, is its pair's weight (scaled Bradley-Terry, arXiv 2410.01257)."""
    pairs = _preferred(line, "preference_strength")
    values = origin(line, note=(line.get("preference_statement"),))
    answers = [Answer(n, chat.answer(line.get(f"response_{n}"), f"response_{n}"), origin=values) for n in ("1", "2")]
    return [answers_record(line, helpsteer_prompt(line.get("prompt")), answers, pairs)]


def helpsteer3(line: FeedbackLine) -> list[Record]:
    """HelpSteer 3's preferences; an answer's note is what the raters said about it."""
    pairs = _preferred(line, "overall_preference")
    raters = [
        one for one in list_of(line.get("individual_preference"), "individual_preference") if isinstance(one, dict)
    ]
    answers = [
        Answer(
            n,
            chat.answer(line.get(f"response{n}"), f"response{n}"),
            origin=origin(line, note=[one.get(f"feedback{n}") for one in raters]),
        )
        for n in ("1", "2")
    ]
    return [answers_record(line, chat.messages(list_of(line.get("context"), "context"), "context"), answers, pairs)]


# PKU-SafeRLHF: which is the more helpful answer, which the safer one, and which are safe

_PKU = ("better_response_id", "safer_response_id", "is_safe", "both")
_SIDE_IDS = {0: 0, 1: 1, "0": 0, "1": 1}


def pku(line: FeedbackLine) -> list[Record]:
    """A pair by helpfulness or by safety, or two thumbs by safety; `--judgement` says which where they differ."""
    name = line.judgements.name
    if name and name not in _PKU:
        raise DataError(f'has no judgement "{name}". Known: {", ".join(_PKU)}')
    safe = [line.get(f"is_response_{n}_safe") if name == "is_safe" else None for n in "01"]
    if name == "is_safe" and not all(isinstance(value, bool) for value in safe):
        raise DataError("is_response_0_safe and is_response_1_safe must be true or false")
    answers = [
        Answer(
            n,
            chat.answer(line.get(f"response_{n}"), f"response_{n}"),
            safe[int(n)],
            origin=origin(line, model=line.get(f"response_{n}_source")),
        )
        for n in "01"
    ]
    pairs: tuple[Pair, ...] = ()
    if name != "is_safe":
        columns = (name,) if name.endswith("_id") else _PKU[:2]
        better, *other = (look_up(_SIDE_IDS, line.get(column), column) for column in columns)
        if other and other != [better]:
            if name == "both":
                raise LeftOut("the more helpful answer is the less safe one")
            raise DataError(
                f"the better answer is response_{better} and the safer one response_{other[0]}. Say which to read: "
                f"--judgement {_PKU[0]}, {_PKU[1]}, both (rows in which they agree) or is_safe (thumbs)"
            )
        pairs = (Pair(better, 1 - better),)
    return [answers_record(line, question(line.get("prompt"), "prompt"), answers, pairs)]


# SHP: two comments on a post, of which people upvoted one more often


def shp(line: FeedbackLine) -> list[Record]:
    """A pair of comments; their scores are votes."""
    better = 0 if look_up(_SIDE_IDS, line.get("labels"), "labels") else 1
    post = line.get("post_id")
    answers = [
        Answer(
            identifier(line.get(f"c_root_id_{side}"), side, f"c_root_id_{side}"),
            chat.answer(line.get(f"human_ref_{side}"), f"human_ref_{side}"),
            None,
            number(line.values, f"score_{side}"),
            origin(line, at=line.get(f"created_at_utc_{side}"), conversation=post),
        )
        for side in "AB"
    ]
    prompt = question(line.get("history"), "history")
    return [answers_record(line, prompt, answers, (Pair(better, 1 - better),), identifier(post, line.id, "post_id"))]


def _sides(names: str, *patterns: str) -> tuple[str, ...]:
    return tuple(pattern.format(name) for pattern in patterns for name in names)


LAYOUTS = (
    Layout(
        "arena",
        ("model_a", "model_b", "winner", "conversation_a", "conversation_b"),
        arena,
        ("question_id", "judge", "turn", "tstamp", "timestamp", "evaluation_session_id"),
        ("winner",),
        objects=("conversation_a", "conversation_b", "full_conversation", "conv_metadata", "category_tag"),
        thumbs=None,
    ),
    Layout(
        "arena-55k",
        ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b"),
        arena_table,
        ("model_a", "model_b"),
        ("winner_model_a", "winner_model_b", "winner_tie"),
        thumbs=None,
    ),
    Layout(
        "helpsteer2-preference",
        ("prompt", "response_1", "response_2", "preference_strength"),
        helpsteer2,
        (
            "preference_statement",
            "preference_elaboration",
            "three_most_similar_preferences",
            "all_preferences_unprocessed",
        ),
        ("preference_strength",),
        objects=("three_most_similar_preferences", "all_preferences_unprocessed"),
        thumbs=None,
    ),
    Layout(
        "helpsteer3",
        ("context", "response1", "response2", "overall_preference"),
        helpsteer3,
        ("individual_preference",),
        ("overall_preference",),
        objects=("context", "individual_preference"),
        thumbs=None,
    ),
    Layout(
        "pku-saferlhf",
        ("prompt", "response_0", "response_1", "better_response_id", "safer_response_id"),
        pku,
        _sides("01", "response_{}_source"),
        ("better_response_id", "safer_response_id", *_sides("01", "is_response_{}_safe", "response_{}_severity_level")),
        objects=_sides("01", "response_{}_harm_category"),
        thumbs=None,
    ),
    Layout(
        "shp",
        ("history", "human_ref_A", "human_ref_B", "labels"),
        shp,
        ("post_id", *_sides("AB", "c_root_id_{}", "created_at_utc_{}")),
        ("labels", "upvote_ratio", "score_ratio", *_sides("AB", "score_{}")),
        thumbs=None,
    ),
)
