"""Help pages, and what a dataclass of options says of itself: flags, choices and the string under each field."""

from __future__ import annotations

import ast
import inspect
import itertools
import shutil
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, Literal

INDENT = 26
"""Where explanations begin; a longer flag has its line for itself."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One option as the command line shows it: `words` is the flag, or a positional argument's name; `takes` names its
    value, empty for a switch; `choices` are the only values, if they are few."""

    field: str
    words: str
    takes: str
    choices: tuple[str, ...]
    explanation: str
    positional: bool = False


def flags(options: type) -> list[Flag]:
    """Every field of a dataclass of options, in order."""
    hints, explanations = typing.get_type_hints(options, include_extras=True), explained(options)
    return [_flag(field, hints[field.name], explanations[field.name]) for field in fields(options)]


def _flag(field: Field[Any], hint: Any, explanation: str) -> Flag:
    metavar = next((m.metavar for m in getattr(hint, "__metadata__", ()) if getattr(m, "metavar", None)), None)
    if metavar is not None:
        return Flag(field.name, metavar, "", (), explanation, positional=True)
    if field.name == "loss_args":
        return Flag(field.name, "--loss.NAME", "VALUE", (), explanation)
    kinds = [kind for kind in _alternatives(hint) if kind is not type(None)]
    choices = tuple(typing.get_args(kinds[0])) if typing.get_origin(kinds[0]) is Literal else ()
    takes = "|".join(choices) or {bool: "", int: "N", float: "X"}.get(kinds[0], field.name.upper())
    if typing.get_origin(kinds[0]) is tuple:
        takes = "NAME ..."
    if field.default not in (None, MISSING, "", (), False, 0, "auto"):
        explanation += f" (default {_plain(field.default)})"
    return Flag(field.name, "--" + field.name.replace("_", "-"), takes, choices, explanation)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return typing.get_args(hint) if union else (hint,)


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def explained(options: type) -> dict[str, str]:
    """{field: the string under it, on one line}, read from the source."""
    body = typing.cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(options))).body[0]).body
    strings: dict[str, str] = {}
    for one, two in itertools.pairwise(body):
        if isinstance(one, ast.AnnAssign) and isinstance(two, ast.Expr) and isinstance(two.value, ast.Constant):
            strings[ast.unparse(one.target)] = " ".join(str(two.value.value).split())
    return strings


def page(
    options: type,
    command: str,
    *,
    first: tuple[str, Sequence[str]] | None = None,
    groups: Mapping[str, str] | None = None,
    more: Sequence[Flag] = (),
    example: str = "",
) -> str:
    """A help page as wide as the terminal, at most 100 columns.

    `first` is a heading and the fields that matter most; `groups` are headings and the first field of each, in the
    order of the dataclass: a field belongs to the last heading before it. `more` are flags that are no fields.
    """
    width = min(shutil.get_terminal_size((80, 24)).columns, 100)
    shown = flags(options)
    heading, matter = first or ("", ())
    order = sorted((f for f in shown if f.field in matter), key=lambda f: list(matter).index(f.field))
    places = [flag.words for flag in shown if flag.positional]
    lines = [" ".join(["usage: prospect", command, *places, "[OPTIONS]"]), ""]
    lines += [*textwrap.wrap(" ".join((inspect.getdoc(options) or "").split()), width), ""]
    if order:
        lines += [heading, *itertools.chain.from_iterable(_lines(flag, width) for flag in order)]
    starts = {field: title for title, field in (groups or {}).items()}
    for flag in shown:
        if flag.field in starts:
            lines += ["", starts[flag.field]]
        if flag not in order:
            lines += _lines(flag, width)
    lines += itertools.chain.from_iterable(_lines(flag, width) for flag in more)
    if example:
        lines += ["", "Example", *(f"  {line}" for line in example.splitlines())]
    return "\n".join(lines)


def _lines(flag: Flag, width: int) -> list[str]:
    head = f"  {flag.words} {flag.takes}".rstrip()
    text = textwrap.wrap(flag.explanation, width - INDENT, break_long_words=False, break_on_hyphens=False)
    rest = [" " * INDENT + line for line in text]
    if len(head) + 2 > INDENT:
        return [head, *rest]
    return [head.ljust(INDENT) + text[0], *rest[1:]]
