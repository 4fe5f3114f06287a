"""Files of other trainers that name their columns in their own way: orca's pairs, UltraFeedback's as Argilla binarized
them, ms-swift's, axolotl's, and OpenAI's for fine-tuning on preferences (which Azure, Together and Fireworks read)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from prospect.errors import DataError
from prospect.feedback import messages as chat
from prospect.feedback.imports.common import api_message, list_of, object_of
from prospect.feedback.imports.comparisons import TIE, Answer, answers_record
from prospect.feedback.readers import FeedbackLine, Layout, LeftOut, instruction_prompt, shared_turns, thumbs_of
from prospect.feedback.records import Message, Pair, Record

_MEDIA = ("images", "videos", "audios")


def _asked(line: FeedbackLine, columns: tuple[str, ...]) -> tuple[Message, ...]:
    """The prompt in the first of the columns that there is, behind a system message."""
    column = next(name for name in columns if name in line.columns)
    if column == "instruction":
        return instruction_prompt(line)
    turns = (("system", line.get("system") or ""), ("user", line.get(column)))
    return chat.with_text(
        tuple({"role": role, "content": chat.plain_text(text, column)} for role, text in turns if text != ""), column
    )


def _pairs(
    asked: tuple[str, ...], sides: tuple[str, str], scores: tuple[str, str]
) -> Callable[[FeedbackLine], list[Record]]:
    def read(line: FeedbackLine) -> list[Record]:
        if line.get("status") == "tie":  # as distilabel says it of orca's pairs
            raise LeftOut(TIE)
        return line.pair(_asked(line, asked), line.get(sides[0]), line.get(sides[1]), sides, scores)

    return read


def axolotl(line: FeedbackLine) -> list[Record]:
    """{"system", "instruction" or "question", "input", "completion", "label"}."""
    return line.single(
        _asked(line, ("instruction", "question")), line.get("completion"), "completion", "label", "score"
    )


def swift(line: FeedbackLine) -> list[Record]:
    """A conversation, with what was rejected in place of its last answer: a text, several, or a whole conversation."""
    if any(map(line.get, _MEDIA)):
        raise LeftOut("a row shows an image, a video or sound, and only text is read")
    value = line.get("messages")
    if line.get("rejected_messages") is not None:
        parts = shared_turns(None, value, line.get("rejected_messages"))
        return line.pair(*parts, columns=("messages", "rejected_messages"))
    *turns, last = chat.messages(value, "messages")
    rejected = line.get("rejected_response")
    texts = rejected if isinstance(rejected, list) and all(isinstance(one, str) for one in rejected) else [rejected]
    if not texts:
        raise DataError("rejected_response is an empty list. Give the rejected answer, or leave the row out")
    if len(texts) == 1:
        return line.pair(chat.with_text(tuple(turns)), last, texts[0], ("the last of messages", "rejected_response"))
    answers = [
        Answer(str(i), chat.answer(text, "the last of messages" if i == 0 else f"rejected_response[{i - 1}]"))
        for i, text in enumerate((last, *texts))
    ]
    return [answers_record(line, tuple(turns), answers, [Pair(0, i) for i in range(1, len(answers))])]


_OUTPUTS = ("preferred_output", "non_preferred_output")


def openai(line: FeedbackLine) -> list[Record]:
    """{"input": {"messages", "tools"}, "preferred_output", "non_preferred_output"}, as OpenAI fine-tunes on them."""
    question = object_of(line.get("input"), "input")
    prompt = chat.with_text(tuple(_messages(question.get("messages"), "input.messages")), "input.messages")
    if question.get("tools"):
        line = replace(line, values={**line.values, "tools": question["tools"]})
    chosen, rejected = (_messages(line.get(side), side) for side in _OUTPUTS)
    return line.pair(prompt, chosen, rejected, _OUTPUTS)


def _messages(value: Any, where: str) -> list[Message]:
    return [api_message(message, f"{where}: message {i}") for i, message in enumerate(list_of(value, where), 1)]


_ORCA, _BINARIZED = ("question", "input"), ("instruction", "prompt")
_SIDES, _RESPONSES = ("chosen", "rejected"), ("chosen_response", "rejected_response")
_SCORES, _RATINGS = ("chosen_score", "rejected_score"), ("chosen_avg_rating", "rejected_avg_rating")

LAYOUTS = (
    Layout(
        "orca-pairs",
        ("question|input", *_SIDES),
        _pairs(_ORCA, _SIDES, _SCORES),
        ("system", "status"),
        (*_SIDES, *_SCORES, "rating"),
        thumbs=None,
        looks=lambda row: "instruction" not in row and "prompt" not in row,
    ),
    Layout(
        "response-pairs",
        ("instruction|prompt", *_RESPONSES),
        _pairs(_BINARIZED, _RESPONSES, _RATINGS),
        ("input", "system", "history", "chosen_model", "rejected_model"),
        (*_RESPONSES, *_RATINGS, "chosen_rating", "rejected_rating"),
        thumbs=None,
    ),
    Layout(
        "ms-swift",
        ("messages", "rejected_response|rejected_messages"),
        swift,
        _MEDIA,
        ("rejected_response", "rejected_messages"),
        objects=("messages", "rejected_messages"),
        thumbs=None,
    ),
    Layout(
        "axolotl",
        ("instruction|question", "completion", "label"),
        axolotl,
        ("input", "system", "history", "score"),
        ("label",),
        thumbs=thumbs_of,
    ),
    Layout(
        "openai-preference",
        ("input", *_OUTPUTS),
        openai,
        (),
        _OUTPUTS,
        objects=("input", *_OUTPUTS),
        thumbs=None,
    ),
)
