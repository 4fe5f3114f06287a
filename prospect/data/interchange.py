"""Records as the files of other trainers: TRL, LLaMA-Factory and axolotl.

A file of theirs holds one kind of row: thumbs (the view binary), pairs, or answers to imitate (text). It has their
columns and no others. What they have no place for is counted; a row whose text they would change is left out and
counted, too. Reading the file again gives what both can say.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from prospect.errors import DataError
from prospect.feedback.records import (
    ORIGIN,
    Completion,
    Example,
    Message,
    Record,
    View,
    binary,
    cite,
    function_of,
    pairs,
    text,
)

Row = dict[str, Any]
Rows = Callable[[Record, Example], Row]

_VIEWS: Mapping[View, Callable[[Record], list[Example]]] = {"binary": binary, "pairs": pairs, "text": text}
_KINDS = {"binary": "thumbs", "pairs": "pairs", "scores": "scores alone", "text": "answers without a judgement"}


class _NoPlace(Exception):
    """Why a row cannot be written."""


def _answer(record: Record, example: Example, side: int = 0) -> Completion:
    return record.completions[example.branches[side]]


def _message(completion: Completion) -> Message:
    """The answer as a message."""
    content = completion.content
    return {"role": "assistant", "content": content} if isinstance(content, str) else content


def _chat(record: Record) -> list[Message]:
    """The messages of the prompt, of which there must be some."""
    if isinstance(record.prompt, str):
        raise _NoPlace("a text without a prompt" if not record.prompt else _TEXT_PROMPT)
    return list(record.prompt)


_TEXT_PROMPT = "a prompt of text, which would become a user's message: --chat makes it one"


def _plain(message: Message, keys: tuple[str, ...] = ("role", "content")) -> Message:
    """A message that has no more than these keys."""
    if more := [key for key in message if key not in keys]:
        raise _NoPlace(f"a message with {' and '.join(more)}")
    return message


# TRL: text or messages, tools and template keywords beside them


def _trl(names: tuple[str, ...]) -> Rows:
    def row(record: Record, example: Example) -> Row:
        said = [_answer(record, example, i) for i in range(len(example.branches))]
        if not record.prompt:
            if names != ("completion",):
                raise _NoPlace("a judged text without a prompt")
            return {"text": said[0].text}
        with_text = isinstance(record.prompt, str)
        values = [c.content if with_text else [_message(c)] for c in said]
        more: Row = {"tools": list(record.tools)} if record.tools else {}
        more |= {"chat_template_kwargs": record.template_kwargs} if record.template_kwargs else {}
        label = {} if example.desirable is None else {"label": example.desirable}
        prompt = record.prompt if with_text else list(record.prompt)
        return {"prompt": prompt, **dict(zip(names, values, strict=True)), **label, **more}

    return row


# LLaMA-Factory: ShareGPT's turns, which alternate; a call is a speaker of its own

_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
_ODD, _EVEN = ("human", "observation"), ("gpt", "function_call")


def _turn(message: Message) -> Row:
    if message["role"] not in _SPEAKERS:
        raise _NoPlace(f"a message of role {message['role']}")
    if message.get("tool_calls"):
        _plain(message, ("role", "content", "tool_calls"))
        if message.get("content"):
            raise _NoPlace("a message with text and tool calls")
        calls = [
            {key: value for key, value in function_of(call).items() if value is not None}
            for call in message["tool_calls"]
        ]
        return {"from": "function_call", "value": json.dumps(calls if len(calls) > 1 else calls[0], ensure_ascii=False)}
    keys = ("role", "content", "name", "tool_call_id") if message["role"] == "tool" else ("role", "content")
    return {"from": _SPEAKERS[message["role"]], "value": _plain(message, keys)["content"]}


def _factory(record: Record, answers: list[Message]) -> Row:
    """The turns of the prompt, and tools; with one answer the turns hold it, too."""
    turns = [_turn(message) for message in (*_chat(record), *(answers if len(answers) == 1 else ()))]
    rest = turns[1:] if turns[0]["from"] == "system" else turns
    if any(turn["from"] not in (_EVEN if i % 2 else _ODD) for i, turn in enumerate(rest)) or (
        len(rest) % 2 != len(answers) - 1
    ):
        raise _NoPlace("turns that do not alternate, which LLaMA-Factory would drop")
    return {"conversations": turns, "tools": json.dumps(record.tools, ensure_ascii=False) if record.tools else ""}


def _factory_thumb(record: Record, example: Example) -> Row:
    return _factory(record, [_message(_answer(record, example))]) | {"kto_tag": example.desirable}


def _factory_pair(record: Record, example: Example) -> Row:
    chosen, rejected = (_message(_answer(record, example, side)) for side in (0, 1))
    return _factory(record, [chosen, rejected]) | {"chosen": _turn(chosen), "rejected": _turn(rejected)}


def _factory_answer(record: Record, example: Example) -> Row:
    return _factory(record, [_message(_answer(record, example))])


# axolotl: role and content alone


def _axolotl_thumb(record: Record, example: Example) -> Row:
    *system, question = _chat(record)
    if question["role"] != "user" or len(system) > 1 or any(m["role"] != "system" for m in system):
        raise _NoPlace("a chat of several turns with a thumb, for which axolotl has one question")
    answer = _plain(_message(_answer(record, example)))
    texts = {"system": _plain(system[0])["content"]} if system else {}
    texts |= {"instruction": _plain(question)["content"], "completion": answer["content"]}
    return {**texts, "label": example.desirable}


def _axolotl_pair(record: Record, example: Example) -> Row:
    sides = {name: _plain(_message(_answer(record, example, i))) for i, name in enumerate(("chosen", "rejected"))}
    return {"messages": list(map(_plain, _chat(record))), **sides}


def _axolotl_answer(record: Record, example: Example) -> Row:
    """Of a chat the last answer alone is trained."""
    answer = _plain(_message(_answer(record, example))) | {"train": True}
    before = [m | {"train": False} if m["role"] == "assistant" else m for m in map(_plain, _chat(record))]
    return {"messages": [*before, answer]}


# The table


@dataclass(frozen=True, slots=True)
class Trainer:
    """How another trainer's rows are made in each view; what of a record they say beside prompt and answers; and what
    its user has to set."""

    title: str
    rows: Mapping[View, Rows]
    says: tuple[str, ...] = ()
    set_up: Mapping[View, str] = field(default_factory=dict)


_TAGS = '"formatting": "sharegpt", "columns": {"messages": "conversations", "tools": "tools"'
TRAINERS = {
    "trl": Trainer(
        "TRL",
        {"binary": _trl(("completion",)), "pairs": _trl(("chosen", "rejected")), "text": _trl(("completion",))},
        ("tools", "template keywords"),
    ),
    "llamafactory": Trainer(
        "LLaMA-Factory",
        {"binary": _factory_thumb, "pairs": _factory_pair, "text": _factory_answer},
        ("tools",),
        {
            "binary": f'dataset_info.json: {{"file_name": "FILE", {_TAGS}, "kto_tag": "kto_tag"}}}}',
            "pairs": f'dataset_info.json: {{"file_name": "FILE", "ranking": true, {_TAGS}, "chosen": "chosen", '
            '"rejected": "rejected"}}',
            "text": f'dataset_info.json: {{"file_name": "FILE", {_TAGS}}}}}; mask_history: true trains the last answer '
            "alone",
        },
    ),
    "axolotl": Trainer(
        "axolotl",
        {"binary": _axolotl_thumb, "pairs": _axolotl_pair, "text": _axolotl_answer},
        (),
        {
            "binary": "datasets: [{path: FILE, ds_type: json, type: chatml.argilla}], with rl: kto",
            "pairs": "datasets: [{path: FILE, ds_type: json, type: chat_template.default}], with rl: dpo",
            "text": "datasets: [{path: FILE, ds_type: json, type: chat_template, message_field_training: train}]",
        },
    ),
}


class Interchange:
    """Records as rows for a trainer, and what could not be said. With the view "auto" the first record with a judgement
    says whether the file holds thumbs, pairs or answers."""

    def __init__(self, to: str, view: Literal["auto", "binary", "pairs", "text"] = "auto") -> None:
        self.trainer = TRAINERS[to]
        self._view: View | None = None if view == "auto" else view
        self._of_all = view != "auto"
        self._form: dict[str, bool] | None = None
        self._count = 0
        self._left_out: dict[str, list[str]] = {}
        self._lost: Counter[str] = Counter()

    def rows(self, records: Iterable[Record]) -> Iterator[Row]:
        """The rows. Raises DataError where the records hold several kinds and the user has not said which to write, or
        nothing of the kind."""
        for record in records:
            view = self._view_of(record)
            examples = _VIEWS[view](record)
            self._count_lost(record, examples)
            for example in examples:
                try:
                    row = self._in_one_form(self.trainer.rows[view](record, example))
                except _NoPlace as error:
                    self._left_out.setdefault(str(error), []).append(example.id)
                else:
                    self._count += 1
                    yield row
        if not self._count:
            raise DataError(f"nothing can be written for {self.trainer.title}. {'; '.join(self.notes())}")

    def notes(self) -> list[str]:
        """What was written, what was left out and why, what the file has no place for, and what there is to set."""
        title, view = self.trainer.title, self._view or "text"
        lines = [f"{self._count} rows for {title}, of the view {view}"] if self._count else []
        for reason, ids in self._left_out.items():
            lines.append(f"{len(ids)} left out ({', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''}): {reason}")
        if self._lost:
            lost = ", ".join(f"{count} {name}" for name, count in self._lost.items())
            lines.append(f"not in the file, since {title} has no place for them: {lost}")
        if self._count and view in self.trainer.set_up:
            lines.append(self.trainer.set_up[view])
        return lines

    def _in_one_form(self, row: Row) -> Row:
        """The row, if it is of the first one's form: a column of tables is text or messages, and not both."""
        columns = ("text", "prompt")
        form: dict[str, bool] = {name: isinstance(row[name], str) for name in columns if name in row}
        self._form = form if self._form is None else self._form
        if form != self._form:
            raise _NoPlace("a prompt of text among chats, a chat among texts, or none at all: one file has one form")
        return row

    def _view_of(self, record: Record) -> View:
        if self._view is not None and self._of_all:
            return self._view
        labels = any(c.label is not None for c in record.completions)
        kinds: list[View] = ["pairs"] if record.pairs else []
        kinds += ["binary"] if labels else []
        kinds = kinds or (["scores"] if any(c.score is not None for c in record.completions) else ["text"])
        if len(kinds) > 1 or kinds[0] == "scores" or self._view not in (None, kinds[0]):
            before = "" if self._view is None else f", and the records before it {_KINDS[self._view]}"
            raise DataError(
                f"the record {cite(record.id)} has {' and '.join(_KINDS[kind] for kind in kinds)}{before}. A file for "
                f"{self.trainer.title} holds thumbs, pairs or answers. Say which: --view binary, pairs (of scores the "
                "higher over the lower) or text"
            )
        self._view = kinds[0]
        return self._view

    def _count_lost(self, record: Record, examples: list[Example]) -> None:
        written = {branch for example in examples for branch in example.branches}
        lost = self._lost
        lost["answers without a part in it"] += len(record.completions) - len(written)
        lost["weights"] += sum(example.weight != 1 for example in examples)
        for i in written:
            c = record.completions[i]
            lost["thumbs"] += c.label is not None and not any(e.desirable is not None for e in examples)
            lost["scores"] += c.score is not None
            lost["answers that were cut off, and look whole"] += not c.complete
            lost["targets"] += bool(c.target)
            for name in ORIGIN:
                lost[f'origins ("{name}")'] += bool(getattr(c, name))
        beside: dict[str, Any] = {
            "tools": record.tools,
            "template keywords": record.template_kwargs,
            "sources": record.source,
        }
        beside |= {"conversation ids": record.conversations, "reference scores": record.reference_scores}
        for name, value in beside.items():
            lost[name] += bool(value) and name not in self.trainer.says
        for name in [name for name, count in lost.items() if not count]:
            del lost[name]
