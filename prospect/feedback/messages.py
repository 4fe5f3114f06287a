"""Values as they stand in files, checked and put into one form: JSON, text, chat messages, tool calls and thumbs.

`where` is the column that a function reads, for its error. Errors are DataError without a place; the caller knows file
and line.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar, cast

from prospect.errors import DataError, brief, nearest
from prospect.feedback.records import Message, Prompt, function_of

T = TypeVar("T")

MOST_LEVELS = 100
"""Deepest nesting of lists and objects that is read. Python's own limit depends on the caller."""

TOO_DEEP = f"JSON is nested too deeply (more than {MOST_LEVELS} levels)"

CONVERSATIONS = ("messages", "conversations")
"""Columns that hold whole conversations."""

TURN_THUMBS = ("rating", "label")
TURN_JUDGEMENTS = (*TURN_THUMBS, "score")
"""Keys of a message that judge it. Null says that nobody did."""

TRAIN_FLAGS = ("train", "loss")
"""Keys of a message whose false says that it is context and no answer to learn from."""

_NOT_FOR_TEMPLATES = (*TURN_JUDGEMENTS, *TRAIN_FLAGS, "weight", "complete")
_CALLS = ("function_call", "tool_call")
"""Speakers whose text is a tool call of the assistant, as JSON."""

_SPEAKERS = {
    "system": "system",
    "developer": "developer",
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "ai", "bot", "chatbot", "model"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "function_response", "tool_response", "ipython"), "tool"),
    **dict.fromkeys(_CALLS, "assistant"),
}
"""The role of every speaker that public data name, in lower case."""


# JSON that somebody else wrote: whatever is read here can be written again


class BrokenJSON(DataError):
    """Text that is no JSON, or not all of it: what is wrong, and at which character of the text."""

    def __init__(self, error: json.JSONDecodeError) -> None:
        super().__init__(f"broken JSON at column {error.colno}: {error.msg}", line=error.lineno)
        self.reason, self.place = error.msg, error.pos


def json_value(text: str) -> Any:
    """The value that `text` holds. Raises DataError with the line (within the text) where it breaks, and where it is
    nested deeper than MOST_LEVELS, has a whole number of more digits than Python converts, or names a key twice."""
    return _checked(_DECODER.decode, text)


def json_value_at(text: str, start: int) -> tuple[Any, int]:
    """The value that begins at `start`, and where it ends; raises as `json_value` does, with the place in `text`."""
    return cast(tuple[Any, int], _checked(_DECODER.raw_decode, text, start))


def _checked(decode: Callable[..., Any], text: str, start: int = 0) -> Any:
    """What `decode` reads of `text` from `start`."""
    try:
        value = decode(text, start) if start else decode(text)
    except json.JSONDecodeError as error:
        raise BrokenJSON(error) from None
    except RecursionError:
        raise DataError(TOO_DEEP) from None
    except DataError:
        raise
    except ValueError:  # the only other one is Python's limit on the digits of a whole number
        raise DataError("JSON holds a number of more than 4,300 digits. Write it as text, or shorten it") from None
    inner, end = (value, len(text)) if decode == _DECODER.decode else value
    if text.count("[", start, end) + text.count("{", start, end) > MOST_LEVELS and too_deep(inner):
        raise DataError(TOO_DEEP)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object. Raises DataError where a key stands twice, since one of its values would be lost."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f'an object has the key "{twice}" twice. Keep one of the two')
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def too_deep(value: Any) -> bool:
    """Whether lists and objects are nested deeper than MOST_LEVELS. It walks level by level, not by recursion."""
    level = [value]
    for _ in range(MOST_LEVELS + 1):
        inner: list[Any] = []
        for part in level:
            if isinstance(part, dict):
                inner.extend(part.values())
            elif isinstance(part, list | tuple):
                inner.extend(part)
        if not inner:
            return False
        level = inner
    return True


def from_json(value: Any, where: str) -> Any:
    """`value`, parsed where it is JSON in text (as in CSV and in LLaMA-Factory's tools)."""
    if not isinstance(value, str):
        return value
    try:
        return json_value(value)
    except DataError as error:
        raise DataError(f"{where} is not valid JSON: {error.message}") from None


def jsonable(value: T, where: str) -> T:
    """`value`, if it can be written as JSON."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{where} cannot be written as JSON: {error}") from None
    return value


# Text


def excerpt(value: Any) -> str:
    """A value in an error message: its type and as much of it as fits."""
    return f"{type(value).__name__} {brief(value)}"


def plain_text(value: Any, where: str) -> str:
    """`value`, if it is text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise DataError(f"{where} must be text, not {excerpt(value)}" if value is not None else f"{where} is missing")
    try:
        if not value.isascii():  # which Python knows without a look
            value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where} has half of a character pair (a lone surrogate) at position {error.start}") from None
    return value


def moment(value: Any, where: str) -> str:
    """A time as ISO 8601 in UTC: "2024-03-18T10:00:00Z". It may be ISO 8601, a mail's date, or a number of seconds,
    milliseconds, microseconds or nanoseconds since 1970, told apart by size; what names no zone is UTC."""
    value = value.get("$date", value) if isinstance(value, dict) else value  # MongoDB
    try:
        if isinstance(value, str):
            time = _moment_in_words(value.strip())
        elif isinstance(value, datetime):
            time = value
        elif isinstance(value, int | float) and not isinstance(value, bool):
            unit = next(unit for unit in (1, 1e3, 1e6, 1e9) if abs(value / unit) < 1e11)
            time = datetime.fromtimestamp(value / unit, UTC)
        else:
            raise ValueError
        utc = time.replace(tzinfo=time.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError, OSError, StopIteration):
        raise DataError(
            f"{where} must be a time such as 2024-03-18T10:00:00Z or seconds since 1970, not {excerpt(value)}"
        ) from None
    return utc.isoformat(timespec="milliseconds" if utc.microsecond else "seconds").replace("+00:00", "Z")


def _moment_in_words(text: str) -> datetime:
    with suppress(ValueError):
        return datetime.fromisoformat(text.removesuffix(" UTC"))
    if re.fullmatch(r"\d{9,19}(\.\d+)?", text):
        return datetime.fromisoformat(moment(float(text), ""))
    return parsedate_to_datetime(text)


# Tool calls, whose arguments stand in files as objects or as JSON in text


def arguments_of(message: Message) -> list[Any]:
    """The arguments of each tool call."""
    return [function_of(call).get("arguments") for call in message.get("tool_calls") or ()]


def with_arguments(message: Message, change: Callable[[Any], Any]) -> Message:
    """The message with the arguments of its tool calls changed."""

    def with_change(call: Any) -> Any:
        function = function_of(call)
        if "arguments" not in function:
            return call
        function = function | {"arguments": change(function["arguments"])}
        return call | {"function": function} if isinstance(call.get("function"), dict) else function

    calls = message.get("tool_calls")
    return (
        message | {"tool_calls": [with_change(call) for call in calls]} if isinstance(calls, list | tuple) else message
    )


def with_objects(message: Message) -> Message:
    """The message with arguments as objects: OpenAI's interface writes them as JSON in text, which a chat template
    would print as a quoted text. Blank text is no argument; what is no JSON object stays as the model wrote it."""

    def parse(arguments: Any) -> Any:
        if not isinstance(arguments, str):
            return arguments
        try:
            value = json_value(arguments) if arguments.strip() else {}
        except DataError:
            return arguments
        return value if isinstance(value, dict) else arguments

    return with_arguments(message, parse)


def with_json(message: Message) -> Message:
    """The message with arguments as JSON in text, which some chat templates want."""
    return with_arguments(message, lambda a: a if isinstance(a, str) else json.dumps(a, ensure_ascii=False))


# Messages


def is_messages(value: Any) -> bool:
    """A list of objects, which is how chats are written."""
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(m, dict) for m in value)


def message(value: Any, where: str) -> Message:
    """One chat message, role and content first. ShareGPT's keys and every known speaker are translated, the arguments
    of tool calls become objects; nulls, judgements and training flags are left out."""
    if not isinstance(value, dict):
        raise DataError(f"{where} must be a message with role and content, not {excerpt(value)}")
    sharegpt = "from" in value and "role" not in value
    by, text = ("from", "value") if sharegpt else ("role", "content")
    speaker = value.get(by)
    if not sharegpt and (not isinstance(speaker, str) or not speaker.strip()):
        raise DataError(f'{where} has no role. Expected {{"role": "user", "content": "..."}}')
    name = speaker.strip().lower() if isinstance(speaker, str) else ""
    if name not in _SPEAKERS:
        raise DataError(
            f"{where} is from {excerpt(speaker)}, which is no known speaker.{nearest(name, _SPEAKERS)} Known: "
            f"{', '.join(_SPEAKERS)}"
        )
    role, content = _SPEAKERS[name], value.get(text)
    rest = {k: v for k, v in value.items() if v is not None and k not in (by, text, *_NOT_FOR_TEMPLATES)}
    if name in _CALLS:
        calls = from_json(content, where)
        calls = calls if isinstance(calls, list) else [calls]
        if not all(isinstance(call, dict) and "name" in call for call in calls):
            raise DataError(f"{where} is a function call and must name its function")
        content, rest["tool_calls"] = None, [{"type": "function", "function": call} for call in calls]
    if "tool_calls" in rest:
        calls = from_json(rest["tool_calls"], f"{where} tool_calls")
        if not isinstance(calls, list | tuple) or not all(isinstance(call, dict) for call in calls):
            raise DataError(f"{where} tool_calls must be a list of objects, not {excerpt(calls)}")
        rest["tool_calls"] = list(with_objects({"tool_calls": calls})["tool_calls"])
    if isinstance(content, list):
        texts = [p.get("text") for p in content if isinstance(p, dict) and p.get("type", "text") == "text"]
        if len(texts) != len(content):
            raise DataError(f"{where} has content other than text. Prospect reads text only")
        content = "".join(plain_text(part, where) for part in texts)
    if content is None and not rest.get("tool_calls"):
        raise DataError(f"{where} ({role}) has no content")
    head = {"role": role} if content is None else {"role": role, "content": plain_text(content, f"{where} content")}
    return {**head, **jsonable(rest, where)} if rest else head


def messages(value: Any, where: str) -> tuple[Message, ...]:
    """A conversation; `where` is completed with the number of the message, from 1."""
    if not is_messages(value):
        raise DataError(f"{where} must be a non-empty list of messages, not {excerpt(value)}")
    return tuple(message(m, f"{where}: message {i}") for i, m in enumerate(value, 1))


def prompt(value: Any, where: str = "prompt") -> Prompt:
    """A prompt: text, or messages. Raises DataError where it is blank or neither."""
    if isinstance(value, list | tuple):
        return with_text(messages(value, where) if value else (), where)
    if value is None:
        raise DataError(f"{where} is missing")
    if not isinstance(value, str):
        raise DataError(f"{where} must be text or a list of messages, not {excerpt(value)}")
    if not value.strip():
        raise DataError(f'{where} is blank. To train on text without a prompt, name its column "text"')
    return plain_text(value, where)


def with_text(turns: tuple[Message, ...], where: str = "prompt") -> tuple[Message, ...]:
    """`turns` if anybody says something in them: the system alone may, before the assistant opens."""
    if not any(m.get("tool_calls") or m.get("content", "").strip() for m in turns):
        raise DataError(f"{where} is blank: no turn before the answer has text")
    return turns


def answer(value: Any, where: str) -> str | Message:
    """One answer: text, or one assistant message, which becomes text where it carries nothing else."""
    if isinstance(value, str):
        return plain_text(value, where)
    if isinstance(value, list | tuple):
        if len(value) != 1:
            raise DataError(
                f"{where} has {len(value)} messages; what is judged must be one assistant message. Move earlier turns "
                "into the prompt"
            )
        value = value[0]
    if not isinstance(value, dict):
        problem = "is missing" if value is None else f"must be text or one assistant message, not {excerpt(value)}"
        raise DataError(f"{where} {problem}")
    reply = message(value, where)
    if reply["role"] != "assistant":
        raise DataError(f'{where} must be an assistant message, not one of role "{reply["role"]}"')
    return str(reply["content"]) if set(reply) == {"role", "content"} else reply


# Messages as they stand in the file, with their judgements and flags


def turns_of(row: Mapping[str, Any]) -> list[Any]:
    """The messages of a row that holds a conversation; else none."""
    turns = next((row[column] for column in CONVERSATIONS if column in row), None)
    return list(turns) if isinstance(turns, list | tuple) else []


def is_judged(turn: Any) -> bool:
    """Whether a message carries a judgement."""
    return isinstance(turn, dict) and any(turn.get(key) is not None for key in TURN_JUDGEMENTS)


def judges_turns(row: Mapping[str, Any]) -> bool:
    """Whether a row holds a conversation in which a turn is judged."""
    return any(map(is_judged, turns_of(row)))


def is_context(turn: Any) -> bool:
    """Whether a message says that it is not to be trained."""
    return isinstance(turn, dict) and any(turn.get(flag) in (False,) for flag in TRAIN_FLAGS)  # 0 included


def check_flags(turn: dict[str, Any], where: str) -> None:
    """Raises DataError where a training flag is neither true nor false."""
    for flag in TRAIN_FLAGS:
        if turn.get(flag) not in (None, True, False):
            raise DataError(f"{where}: {flag} must be true or false, not {excerpt(turn[flag])}")


# Anthropic's transcripts

_TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")


def is_transcript(value: Any) -> bool:
    """Text of the form "Human: ... Assistant: ...", as Anthropic's hh data has it."""
    return isinstance(value, str) and value.lstrip().startswith("Human:")


def transcript(value: Any, where: str) -> tuple[Message, ...]:
    """The turns of "\\n\\nHuman: ...\\n\\nAssistant: ...". Raises DataError where the last is not the assistant's."""
    if not is_transcript(value):
        raise DataError(f'{where} must be a transcript that begins with "\\n\\nHuman:", not {excerpt(value)}')
    pieces = _TRANSCRIPT.split("\n\n" + plain_text(value, where).lstrip())[1:]
    roles = ["user" if speaker == "Human" else "assistant" for speaker in pieces[::2]]
    if roles[-1] != "assistant":
        raise DataError(f"{where} does not end with the assistant's turn")
    return tuple({"role": r, "content": text.strip()} for r, text in zip(roles, pieces[1::2], strict=True))


# Thumbs, read strictly: one file speaks one vocabulary, and nothing is guessed. A cast to bool would make -1 and the
# text "false" desirable, so every value is looked up instead, and the file as a whole is checked once all of it was
# seen: 1 may stand beside 0 or beside -1, never beside both.

VOCABULARIES = (
    'true/false, 1/0, 1/-1, "up"/"down", "good"/"bad", "desirable"/"undesirable", "yes"/"no", "like"/"dislike", '
    '"thumbs_up"/"thumbs_down", "positive"/"negative", "accepted"/"rejected", "solved"/"unsolved", 👍/👎'
)
"""What a label may say, for people. The words may also stand as text, as they must in CSV: "true"/"false", "1"/"0"."""

_BOOLEANS, _NUMBERS, _NUMBERS_AS_TEXT = "true/false", "the numbers 1/0/-1", 'the numbers "1"/"0"/"-1" as text'
_NUMERIC = (_NUMBERS, _NUMBERS_AS_TEXT)
_NUMBER_WORDS = {1.0: "1", 0.0: "0", -1.0: "-1"}
_WORDS = {
    word: (word == up, vocabulary)
    for vocabulary, up, down in (
        ('"true"/"false" as text', "true", "false"),
        ('"up"/"down"', "up", "down"),
        ('"good"/"bad"', "good", "bad"),
        ('"desirable"/"undesirable"', "desirable", "undesirable"),
        ('"yes"/"no"', "yes", "no"),
        ('"like"/"dislike"', "like", "dislike"),
        ('"thumbs_up"/"thumbs_down"', "thumbs_up", "thumbs_down"),
        ('"positive"/"negative"', "positive", "negative"),
        ('"accepted"/"rejected"', "accepted", "rejected"),
        ('"solved"/"unsolved"', "solved", "unsolved"),
        ("👍/👎", "👍", "👎"),
    )
    for word in (up, down)
}
_AS_SCORES = (
    'Name the column "score" (prospect convert IN OUT.jsonl --map score=label) and say where desirable begins with '
    "--threshold mean, median or a number"
)
_SKIN_TONE = re.compile("[\U0001f3fb-\U0001f3ff\ufe0f]")


_THUMBS = re.compile("thumbs?[ -]?(up|down)")


class _ScoreError(DataError):
    """A number that is no thumb, such as 0.85 or 4 stars, also where it stands as text."""


def word_of(value: Any) -> str:
    """A label as a word to look up: small letters, no skin tone; of a whole number its digits, "null" for nothing."""
    if value is None or value == "" or value != value:
        return "null"
    if isinstance(value, str):
        return _SKIN_TONE.sub("", value).strip().casefold() or "null"
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).casefold()


def thumb(value: Any) -> tuple[bool, str, str]:
    """(desirable, vocabulary, word) of one label. Raises DataError for whatever is no thumb, null included."""
    if isinstance(value, bool):
        return value, _BOOLEANS, str(value).lower()
    if value is None or value != value:  # NaN is how tables write null
        raise DataError(
            "label is null. Every row needs a thumb: judge the row or leave it out (--labels null=none leaves out all "
            "that nobody judged)"
        )
    number, vocabulary = value, _NUMBERS
    if isinstance(value, str):
        word = _THUMBS.sub(r"thumbs_\1", word_of(value))
        if word in _WORDS:
            return *_WORDS[word], word
        with suppress(ValueError):
            number, vocabulary = float(word), _NUMBERS_AS_TEXT
    if not isinstance(number, int | float) or number != number:
        text = f'"{brief(value, str)}"' if isinstance(value, str) else brief(value)
        raise DataError(
            f"label {text} is no thumb. A file uses one of {VOCABULARIES}; what other words mean is said with --labels "
            "WORD=up,WORD=down,WORD=none"
        )
    if number not in _NUMBER_WORDS:
        raise _ScoreError(f"label {brief(value, str)} is a score where a thumb should be. {_AS_SCORES}")
    return number == 1, vocabulary, _NUMBER_WORDS[number]


class Labels:
    """The vocabulary of a file's labels, made out from all of them before the first is read.

    `values` are (place, label as it stands there). A column holds one kind of value: beside 5 stars, 1 star is no thumb
    up, and beside true and false, "up" is a slip. The most frequent vocabulary is the file's, or the first of equals.
    Where the user says what the `words` mean, these are the vocabulary.
    """

    def __init__(self, values: Iterable[tuple[str, Any]], words: Mapping[str, bool | None] | None = None) -> None:
        self.words = words or {}
        counts: Counter[str] = Counter()
        first_place: dict[str, str] = {}
        self._numbers: set[str] = set()
        self._score: tuple[str, Any] | None = None
        for place, value in () if self.words else values:
            try:
                _, vocabulary, word = thumb(value)
            except _ScoreError:
                self._score = self._score or (place, value)
            except DataError:
                continue
            else:
                counts[vocabulary] += 1
                first_place.setdefault(vocabulary, place)
                if vocabulary in _NUMERIC:
                    self._numbers.add(word)
        self._vocabulary = counts.most_common(1)[0][0] if counts else ""
        self._first_place = first_place.get(self._vocabulary, "")

    @property
    def are_scores(self) -> bool:
        """Whether some number among the values is no thumb, so that none is."""
        return self._score is not None

    @staticmethod
    def join(shards: Sequence[Labels]) -> None:
        """Make the numbers of several files of one layout one column: each file has its own words, but 5 stars in one
        say that a 1 in another is a star, too."""
        score = next((labels._score for labels in shards if labels._score is not None), None)
        numbers = {word for labels in shards for word in labels._numbers}
        for labels in shards:
            labels._score, labels._numbers = score, numbers

    def says_nothing(self, value: Any) -> bool:
        """Whether the user says that `value` means that nobody judged."""
        return bool(self.words) and self.words.get(word_of(value), True) is None

    def read(self, value: Any) -> bool:
        """Whether `value` says desirable. Raises DataError where it is no thumb, stands among scores or belongs to
        another vocabulary than the file's; where both 0 and -1 occur, for both."""
        if self.words:
            meaning = self.words.get(word_of(value))
            if meaning is None:
                known = ", ".join(self.words)
                raise DataError(
                    f"label {brief(value)} is none of the words of --labels ({known}). Add it as up, down or none"
                )
            return meaning
        desirable, vocabulary, word = thumb(value)
        numeric = vocabulary in _NUMERIC
        if self._score is not None and numeric:
            place, score = self._score
            raise DataError(
                f"label {brief(value, str)} stands among scores ({brief(score, str)} {place}), so it is one. "
                f"{_AS_SCORES}"
            )
        if vocabulary != self._vocabulary:
            raise DataError(
                f"label {brief(value)} belongs to {vocabulary}, but this file's labels are {self._vocabulary} (first "
                f"{self._first_place}). Write all labels of a file in one vocabulary"
            )
        if numeric and word != "1" and self._numbers.issuperset(("0", "-1")):
            raise DataError(
                f'label {brief(value)}: the data have both 0 and -1, so one of them may mean "nobody judged". Leave '
                "out those rows and keep 1/0 or 1/-1"
            )
        return desirable
