"""One reader per public layout: a row of a file becomes records (usually one, a judged conversation several).

A reader sees one row and trusts nothing. It raises DataError without a place; `load.load` adds file and line, merges
records that share a prompt and checks that the file's labels speak one vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prospect.errors import DataError, nearest
from prospect.feedback import messages as chat
from prospect.feedback.records import Completion, Message, Pair, Prompt, Record
from prospect.feedback.rows import FeedbackLine, complete, identifier, number, weight

ROW_TAGS = ("label", "kto_tag", "rating")
"""Columns that may hold the thumb of a whole conversation."""

INSTRUCTORS = ("system", "developer")
"""Roles that nobody answers."""

_COMPLETION_KEYS = ("id", "content", "message", "label", "score", "weight", "complete")
_OF_A_COMPLETION = ("completion", "label", "score", "weight", "complete")
"""Columns of a flat row that have no meaning beside a list of completions."""

_SIDES, _SIDE_SCORES = ("chosen", "rejected"), ("score_chosen", "score_rejected")


def raw_thumbs(row: Mapping[str, Any]) -> Iterator[Any]:
    """Every value in a row that some layout reads as a thumb, as it stands in the file."""
    yield from (row[tag] for tag in ROW_TAGS if tag in row)
    for column, keys in (("completions", ("label",)), *((name, chat.TURN_THUMBS) for name in chat.CONVERSATIONS)):
        parts = row.get(column)
        for part in parts if isinstance(parts, list | tuple) else ():
            if isinstance(part, dict):
                yield from (part[key] for key in keys if key in part)


def _same_form(prompt: Prompt, side: Any, where: str) -> None:
    """Text prompts have text answers: a chat answer says nothing about how the text prompt is to be rendered."""
    if isinstance(prompt, str) and isinstance(side, dict | list | tuple):
        raise DataError(f"prompt is text but {where} is a chat message. Write both as text or both as messages")


# Prospect's own lines


def prospect(row: FeedbackLine) -> list[Record]:
    """{"prompt", "completions": [...], "pairs": [...]}, or a flat line."""
    if "completions" not in row.values:
        if row.get("pairs"):
            raise DataError("pairs stands beside a single completion. Pairs belong to a row with completions")
        return flat(row)
    if misplaced := [key for key in _OF_A_COMPLETION if row.get(key) is not None]:
        raise DataError(
            f"{' and '.join(misplaced)} beside completions belong{'s' if len(misplaced) == 1 else ''} to none of them. "
            'Write it into the completion: {"completions": [{"content": ..., "label": ...}]}'
        )
    values = row.get("completions")
    if not isinstance(values, list | tuple) or not values:
        raise DataError(f"completions must be a non-empty list, not {chat.excerpt(values)}")
    prompt = "" if row.get("prompt") == "" else chat.prompt(row.get("prompt"))
    completions = tuple(_own_completion(row, i, value) for i, value in enumerate(values))
    pairs = row.get("pairs") or ()
    if not isinstance(pairs, list | tuple):
        raise DataError(f"pairs must be a list, not {chat.excerpt(pairs)}")
    for i, done in enumerate(completions):
        _same_form(prompt, done.content, f"completions[{i}]")
    return [row.record(prompt, completions, tuple(_own_pair(pair, len(completions)) for pair in pairs))]


def _own_completion(row: FeedbackLine, index: int, value: Any) -> Completion:
    where = f"completions[{index}]"
    if isinstance(value, str):
        value = {"content": value}
    if not isinstance(value, dict):
        raise DataError(f"{where} must be an object with content, not {chat.excerpt(value)}")
    for key in value:
        if key not in _COMPLETION_KEYS:
            raise DataError(f'{where} has an unknown key "{key}".{nearest(key, _COMPLETION_KEYS)}')
    if ("content" in value) == ("message" in value):
        raise DataError(f"{where} needs content (text) or message (an assistant message), and not both")
    return Completion(
        id=identifier(value.get("id"), f"{row.name}/{index}"),
        content=chat.answer(value.get("content", value.get("message")), where),
        label=None if value.get("label") is None else row.labels.read(value["label"]),
        score=number(value, "score"),
        weight=weight(value),
        complete=complete(value),
        line=row.line,
    )


def _own_pair(value: Any, count: int) -> Pair:
    if isinstance(value, list | tuple) and len(value) == 2:
        value = {"chosen": value[0], "rejected": value[1]}
    if not isinstance(value, dict):
        raise DataError(f"a pair is [chosen, rejected], not {chat.excerpt(value)}")
    sides = value.get("chosen"), value.get("rejected")
    for side in sides:
        if isinstance(side, bool) or not isinstance(side, int) or not 0 <= side < count:
            raise DataError(f"a pair names its sides by index, from 0 to {count - 1}, not {chat.excerpt(side)}")
    return Pair(int(value["chosen"]), int(value["rejected"]), weight(value))


# One answer per row


def flat(row: FeedbackLine) -> list[Record]:
    """{"prompt", "completion"} with "label", "score", both or neither."""
    prompt = chat.prompt(row.get("prompt"))
    _same_form(prompt, row.get("completion"), "completion")
    answer = chat.answer(row.get("completion"), "completion")
    mixed = "completions" in row.columns  # Prospect's own file, where every line may be judged or not
    label = row.thumb("label") if "label" in (row.values if mixed else row.columns) else None
    score = number(row.values, "score") if mixed else row.score("score", label)
    return [row.record(prompt, (row.completion(answer, label, score),))]


def halos(row: FeedbackLine) -> list[Record]:
    """{"prompt", "output": [message], "label", "reward"} as HALOs labels its samples."""
    prompt = chat.prompt(row.get("prompt"))
    _same_form(prompt, row.get("output"), "output")
    answer = chat.answer(row.get("output"), "output")
    label = row.thumb("label") if "label" in row.columns else None
    return [row.record(prompt, (row.completion(answer, label, row.score("reward", label)),))]


def text(row: FeedbackLine) -> list[Record]:
    """{"text"}: imitated as it is, without a prompt."""
    value = chat.plain_text(row.get("text"), "text")
    if not value.strip():
        raise DataError("text is blank")
    return [row.record("", (row.completion(value),))]


# Pairs


def _pair(
    row: FeedbackLine, prompt: Prompt, sides: tuple[Any, Any], names: tuple[str, str], scores: tuple[str, str]
) -> Record:
    """`sides` are (chosen, rejected), `names` their columns, `scores` the columns of their scores. The row's weight is
    the pair's."""
    for side, name in zip(sides, names, strict=True):
        _same_form(prompt, side, name)
    done = tuple(
        Completion(
            id=f"{row.name}/{kind}",
            content=chat.answer(side, name),
            score=number(row.values, score),
            complete=complete(row.values),
            line=row.line,
        )
        for kind, side, name, score in zip(_SIDES, sides, names, scores, strict=True)
    )
    return row.record(prompt, done, (Pair(0, 1, weight(row.values)),))


def paired(row: FeedbackLine) -> list[Record]:
    """{"prompt", "chosen", "rejected"}; without a prompt, the turns that two conversations share are it."""
    sides = row.get("chosen"), row.get("rejected")
    given = row.get("prompt")
    if given is None and isinstance(sides[0], dict):  # LLaMA-Factory's preferences with OpenAI's keys
        given = row.get("messages")
    if chat.is_messages(sides[0]) and chat.is_messages(sides[1]):
        prompt, sides = _shared_turns(given, *sides)
    elif given is None:
        raise DataError("has no prompt, and chosen and rejected are no conversations that could share one")
    else:
        prompt = chat.prompt(given)
    return [_pair(row, prompt, sides, _SIDES, _SIDE_SCORES)]


def _shared_turns(given: Any, chosen: Any, rejected: Any) -> tuple[Prompt, tuple[Any, Any]]:
    """The prompt of two conversations, and what each says after it."""
    a, b = chat.messages(chosen, "chosen"), chat.messages(rejected, "rejected")
    lead = 0
    while lead < min(len(a), len(b)) - 1 and a[lead] == b[lead]:
        lead += 1
    shared, rest = a[:lead], (a[lead:], b[lead:])
    if given is None:
        return chat.with_text(shared, "what chosen and rejected share"), rest
    prompt = chat.prompt(given)
    if isinstance(prompt, str):
        _same_form(prompt, None if any(m.get("content") == prompt for m in shared) else a, "chosen")
        return shared, rest
    return (shared if shared[: len(prompt)] == prompt else prompt + shared), rest


def halos_pairs(row: FeedbackLine) -> list[Record]:
    """{"prompt", "output_A", "output_B", "label": 1 if A is the better one, "reward_A", "reward_B"}."""
    order = ("A", "B") if row.thumb("label") else ("B", "A")
    names = (f"output_{order[0]}", f"output_{order[1]}")
    sides = (row.get(names[0]), row.get(names[1]))
    return [_pair(row, chat.prompt(row.get("prompt")), sides, names, (f"reward_{order[0]}", f"reward_{order[1]}"))]


# LLaMA-Factory


def _tagged(row: FeedbackLine, prompt: Prompt, answer: Any, where: str) -> Record:
    """One answer with the row's own thumb and score, where it has them."""
    tags = [tag for tag in ROW_TAGS if tag in row.columns]
    if len(tags) > 1:
        raise DataError(f"has the columns {' and '.join(tags)}; which one is the thumb? Keep one of them")
    label = row.thumb(tags[0]) if tags else None
    return row.record(prompt, (row.completion(chat.answer(answer, where), label, row.score("score", label)),))


def alpaca(row: FeedbackLine) -> list[Record]:
    """{"instruction", "input", "system", "history", "output", "kto_tag"}, or with a pair [better, worse] of texts as
    its output."""
    prompt, output = _instruction(row), row.get("output")
    if isinstance(output, list | tuple) and len(output) == 2 and all(isinstance(side, str) for side in output):
        if row.columns.intersection((*ROW_TAGS, "score")):
            raise DataError(
                "output is a pair [better, worse], so it has no thumb or score of its own. Keep one of them"
            )
        return [_pair(row, prompt, (output[0], output[1]), ("output[0]", "output[1]"), _SIDE_SCORES)]
    return [_tagged(row, prompt, output, "output")]


def alpaca_pairs(row: FeedbackLine) -> list[Record]:
    """{"instruction", "input", "system", "history", "chosen", "rejected", "score_chosen", "score_rejected"}."""
    return [_pair(row, _instruction(row), (row.get("chosen"), row.get("rejected")), _SIDES, _SIDE_SCORES)]


def _instruction(row: FeedbackLine) -> tuple[Message, ...]:
    """The prompt of a row of Alpaca."""
    turns: list[Message] = _system(row)
    for question, reply in _history(row.get("history")):
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    lines = [row.get("instruction"), row.get("input")]
    question = "\n".join(chat.plain_text(line, "instruction or input") for line in lines if line)
    if not question.strip():
        raise DataError("instruction is blank")
    return (*turns, {"role": "user", "content": question})


def _system(row: FeedbackLine) -> list[Message]:
    text = row.get("system")
    return [{"role": "system", "content": chat.plain_text(text, "system")}] if text else []


def _history(value: Any) -> list[tuple[str, str]]:
    value = chat.from_json(value, "history") if value else []
    if not isinstance(value, list | tuple) or any(not isinstance(v, list | tuple) or len(v) != 2 for v in value):
        raise DataError(f"history must be a list of [question, answer], not {chat.excerpt(value)}")
    return [(chat.plain_text(q, "history"), chat.plain_text(a, "history")) for q, a in value]


# Conversations


def conversation(row: FeedbackLine) -> list[Record]:
    """{"messages"} or {"conversations"}: judged turn by turn, or as a whole (then its last answer is meant), or not at
    all (then every answer is imitated)."""
    column = "conversations" if "conversations" in row.columns else "messages"
    own_turns = _turns(row, column)
    turns = (*_system(row), *own_turns)
    if row.columns.intersection(ROW_TAGS) or "score" in row.columns:
        if row.judged_turns:
            raise DataError("the file judges both rows and single turns. Keep one of the two")
        if chat.is_context(row.get(column)[-1]):
            return []
        return [_tagged(row, chat.with_text(turns[:-1]), turns[-1], f"the last of {column}")]
    before = len(turns) - len(own_turns)
    done = []
    for i, raw in enumerate(row.get(column)):
        prompt = turns[: before + i]
        if row.judged_turns:
            answers = chat.is_judged(raw)
        else:  # a greeting answers nobody: it is context, not a completion
            answers = own_turns[i]["role"] == "assistant" and any(turn["role"] not in INSTRUCTORS for turn in prompt)
        if answers and not chat.is_context(raw):
            done.append(_turn(row, prompt, own_turns[i], raw, i + 1, column))
    return done


def conversation_pairs(row: FeedbackLine) -> list[Record]:
    """{"conversations", "chosen", "rejected"}: the conversation is the prompt of the pair."""
    turns = (*_system(row), *_turns(row, "conversations"))
    return [_pair(row, chat.with_text(turns), (row.get("chosen"), row.get("rejected")), _SIDES, _SIDE_SCORES)]


def _turns(row: FeedbackLine, column: str) -> tuple[Message, ...]:
    turns = chat.messages(row.get(column), column)
    for i, raw in enumerate(row.get(column), 1):
        chat.check_flags(raw, f"{column}: message {i}")
    return turns


def _turn(
    row: FeedbackLine, prompt: tuple[Message, ...], said: Message, raw: Mapping[str, Any], turn: int, column: str
) -> Record:
    """One turn (`raw` with its judgement, `said` without) as the answer to the turns before it."""
    where, name = f"{column}: message {turn}", f"{row.name}/turn{turn}"
    tags = [tag for tag in chat.TURN_THUMBS if raw.get(tag) is not None]
    if len(tags) > 1:
        raise DataError(f"{where} has a label and a rating. Keep one of them")
    answer = Completion(
        id=name,
        content=chat.answer(said, where),
        label=row.labels.read(raw[tags[0]]) if tags else None,
        score=number(raw, "score"),
        weight=weight(raw) if "weight" in raw else weight(row.values),
        complete=complete(raw) and complete(row.values),
        line=row.line,
    )
    return row.record(chat.with_text(prompt, f"{where}: its prompt"), (answer,), name=name)


# Anthropic's transcripts


def transcripts(row: FeedbackLine) -> list[Record]:
    """{"chosen", "rejected"}, both "\\n\\nHuman: ...\\n\\nAssistant: ...", alike up to the last answer."""
    chosen, rejected = (chat.transcript(row.get(side), side) for side in _SIDES)
    if chosen[:-1] != rejected[:-1]:
        raise DataError("chosen and rejected differ before their last answer, so they answer no common prompt")
    sides = chosen[-1:], rejected[-1:]
    return [_pair(row, chat.with_text(chosen[:-1]), sides, _SIDES, _SIDE_SCORES)]
