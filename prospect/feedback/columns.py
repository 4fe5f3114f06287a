"""What --map and --labels say: NEW=COLUMN,... with paths into objects, lists and JSON in text, and WORD=up|down|none.

scores[name=user-feedback].value    of the list in "scores" the object whose name is that, and in it the value
messages[-1].content                the last of the list
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from prospect.errors import ConfigError, DataError, written
from prospect.feedback import messages as chat

MEANINGS = {"up": True, "down": False, "none": None}
"""What a word of --labels may mean; none says that nobody judged."""

_TEXTS = ("prompt", "completion", "chosen", "rejected", "messages", "conversations")
"""Columns whose text may be messages as JSON."""

_MESSAGES = re.compile(r'\s*\[\s*\{\s*"(role|from|content|value)"')
_STEP = re.compile(r"(?:^|\.)([^.\[\]]+)|\[(-?\d+|[^\[\]=]+=[^\[\]]*)\]")

Pairs = str | Mapping[Any, Any]
"""NAME=VALUE,... as on the command line, or a mapping as in YAML."""


# Text


def parts_of(text: str) -> list[str]:
    """What stands between commas; a comma in quotation marks is text."""
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace, lexer.whitespace_split, lexer.commenters, lexer.quotes = ",", True, "", '"'
    try:
        return [part for part in map(str.strip, lexer) if part]
    except ValueError as error:
        raise ConfigError(f"{text}: {error}. A quotation mark opens and closes a name with a comma in it") from None


def as_text(pairs: Pairs, flag: str = "") -> str:
    """NAME=VALUE,... as on the command line. Raises ConfigError, naming the `flag`, for what YAML reads as no text."""
    if isinstance(pairs, str):
        return pairs
    parts = []
    for name, value in pairs.items():
        if isinstance(name, bool):
            raise ConfigError(f'{flag}: YAML reads yes and no as true and false. Write them in quotes: "yes", "no"')
        try:
            part = f"{'null' if name is None else name}={'none' if value is None else value}"
        except (ValueError, RecursionError):  # of thousands of digits or levels
            raise ConfigError(f"{flag}: {written(name)}={written(value)} is no name and value: write text") from None
        quoted = part.replace("\\", "\\\\").replace('"', '\\"')
        parts.append(f'"{quoted}"' if quoted != part or "," in part or part != part.strip() else part)
    return ",".join(parts)


def renames_of(pairs: Pairs) -> dict[str, str]:
    """{new name: column or path}. Raises ConfigError where an equals sign is missing."""
    renames: dict[str, str] = {}
    for part in parts_of(as_text(pairs, "map")):
        new, _, old = (name.strip() for name in part.partition("="))
        if not new or not old:
            raise ConfigError(f'--map reads NEW=COLUMN, such as --map label=vote,prompt=question, not "{part}"')
        if new in renames:
            raise ConfigError(f"--map names {new} twice: {renames[new]} and {old}")
        renames[new] = old
    return renames


def labels_of(pairs: Pairs) -> dict[str, bool | None]:
    """{word: desirable, None where nobody judged}. Raises ConfigError for another meaning than up, down and none."""
    labels: dict[str, bool | None] = {}
    for part in parts_of(as_text(pairs, "labels")):
        word, _, meaning = (name.strip() for name in part.rpartition("="))
        if "=" not in part or meaning not in MEANINGS:
            raise ConfigError(f'--labels reads WORD=up, WORD=down or WORD=none, such as like=up,--=none, not "{part}"')
        labels[chat.word_of(word)] = MEANINGS[meaning]
    return labels


def as_flags(renames: Mapping[str, str], labels: Mapping[str, str]) -> str:
    """--map and --labels as a shell takes them."""
    return " ".join(
        [f"--map {shlex.quote(as_text(renames))}"] + ([f"--labels {shlex.quote(as_text(labels))}"] if labels else [])
    )


# Paths


def take(row: dict[str, Any], path: str, new: str) -> tuple[bool, Any]:
    """(whether it was there, the value) at `path`, which is taken out where it is a key of an object. A text that holds
    messages as JSON becomes them where `new` is a column of messages."""
    if path in row:
        there, value = True, row.pop(path)
    else:
        *outer, last = _steps(path) or [path]
        holder: Any = row
        for step in outer:
            holder = _inside(holder, step, path, new)
        value = _inside(holder, last, path, new)
        there = value is not _ABSENT
        if there and isinstance(holder, dict):
            holder.pop(last)
    if new in _TEXTS and isinstance(value, str) and _MESSAGES.match(value):
        with suppress(DataError):
            value = chat.json_value(value)
    return there, value


_ABSENT = object()


def _steps(path: str) -> list[str | int | tuple[str, str]]:
    """The steps of a path: a key, the place in a list, or (key, value) of an object in a list; none where it is no
    path, but a name with brackets."""
    steps: list[str | int | tuple[str, str]] = []
    end = 0
    for match in _STEP.finditer(path):
        if match.start() != end:
            return []
        end, inside = match.end(), match[2]
        if inside is None:
            steps.append(match[1].strip())
        elif "=" in inside:
            key, _, value = inside.partition("=")
            steps.append((key.strip(), value.strip().strip("\"'")))
        else:
            steps.append(int(inside))
    return steps if end == len(path) else []


def _inside(value: Any, step: str | int | tuple[str, str], path: str, new: str) -> Any:
    """What lies one step further; JSON in text is opened."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        with suppress(DataError):
            value = chat.json_value(value)
    if isinstance(step, str):
        if isinstance(value, list) and any(isinstance(part, dict) and step in part for part in value):
            raise DataError(
                f'"{path}" is a key of each of several objects, so it cannot be read as one "{new}". Say which of '
                f"them: {path.replace(f'.{step}', f'[-1].{step}')} for the last, or [name=NAME] for one of that name"
            )
        return value.get(step, _ABSENT) if isinstance(value, dict) else _ABSENT
    if not isinstance(value, list):
        return _ABSENT
    if isinstance(step, int):
        return value[step] if -len(value) <= step < len(value) else _ABSENT
    key, name = step
    fitting = [part for part in value if isinstance(part, dict) and str(part.get(key)) == name]
    if len(fitting) > 1:
        raise DataError(f'"{path}": {len(fitting)} objects of one row have {key} "{name}", so it is not one "{new}"')
    return fitting[0] if fitting else _ABSENT
