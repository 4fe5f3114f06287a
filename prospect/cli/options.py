"""Options: a frozen dataclass is the only source of a command's flags, their types, defaults and explanations.

parse     command line -> dataclass, through tyro; --help prints the page and ends the process with 0
flags     dataclass -> the list of its flags, for the help page and the completion of shells
page      dataclass -> help page
"""

from __future__ import annotations

import ast
import inspect
import itertools
import shutil
import textwrap
import types
import typing
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import tyro

from prospect.data import store
from prospect.errors import ConfigError
from prospect.training.config import TrainConfig, advice, same_flag

if TYPE_CHECKING:
    from prospect.training.run_folder import ModelOfRun

Options = TypeVar("Options")

INDENT = 26
"""Where explanations begin on a help page; a longer flag has its line for itself."""


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

    def lines(self, width: int) -> list[str]:
        """Its lines on a help page."""
        head = f"  {self.words} {self.takes}".rstrip()
        text = textwrap.wrap(self.explanation, width - INDENT, break_long_words=False, break_on_hyphens=False)
        rest = [" " * INDENT + line for line in text]
        return [head, *rest] if len(head) + 2 > INDENT else [head.ljust(INDENT) + text[0], *rest[1:]]


def flags(options: type) -> list[Flag]:
    """Every field of a dataclass of options, in order; the string under a field, read from the source, explains it."""
    body = typing.cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(options))).body[0]).body
    explanations = {
        ast.unparse(one.target): " ".join(str(two.value.value).split())
        for one, two in itertools.pairwise(body)
        if isinstance(one, ast.AnnAssign) and isinstance(two, ast.Expr) and isinstance(two.value, ast.Constant)
    }
    hints = typing.get_type_hints(options, include_extras=True)
    return [_flag(field.name, field.default, hints[field.name], explanations[field.name]) for field in fields(options)]


def _flag(name: str, default: Any, hint: Any, explanation: str) -> Flag:
    metavar = next((m.metavar for m in getattr(hint, "__metadata__", ()) if getattr(m, "metavar", None)), None)
    if metavar is not None:
        return Flag(name, metavar, "", (), explanation, positional=True)
    if name == "loss_args":
        return Flag(name, "--loss.NAME", "VALUE", (), explanation)
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    kind = next(kind for kind in (typing.get_args(hint) if union else (hint,)) if kind is not type(None))
    choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
    takes = "|".join(choices) or {bool: "", int: "N", float: "X"}.get(kind, name.upper())
    if typing.get_origin(kind) is tuple:
        takes = "NAME ..."
    if default not in (None, MISSING, "", (), False, 0, "auto"):
        explanation += f" (default {f'{default:g}' if isinstance(default, float) else default})"
    return Flag(name, f"--{name.replace('_', '-')}", takes, choices, explanation)


def page(
    options: type,
    command: str,
    *,
    first: tuple[str, Sequence[str]] = ("", ()),
    groups: Mapping[str, str] = types.MappingProxyType({}),
    more: Sequence[Flag] = (),
    example: str = "",
) -> str:
    """A help page as wide as the terminal, at most 100 columns.

    `first` is a heading and the fields that matter most; `groups` are headings, each with its first field, in the
    order of the dataclass: a field belongs to the last heading before it. `more` are flags that are no fields.
    """
    width = min(shutil.get_terminal_size((80, 24)).columns, 100)
    every = {flag.field: flag for flag in flags(options)}
    places = [flag.words for flag in every.values() if flag.positional]
    lines = [" ".join(["usage: prospect", command, *places, "[OPTIONS]"]), ""]
    lines += [*textwrap.wrap(" ".join((inspect.getdoc(options) or "").split()), width), ""]
    heading, important = first
    if heading:
        lines += [heading, *(line for name in important for line in every[name].lines(width))]
    titles = {field: title for title, field in groups.items()}
    for name, flag in every.items():
        if name in titles:
            lines += ["", titles[name]]
        if name not in important:
            lines += flag.lines(width)
    lines += [line for flag in more for line in flag.lines(width)]
    if example:
        lines += ["", "Example", *(f"  {line}" for line in example.splitlines())]
    return "\n".join(lines)


def parse(
    options: type[Options],
    arguments: Sequence[str],
    command: str,
    default: Options | None = None,
    *,
    help_page: Callable[[type, str], str] = page,
) -> Options:
    """The flags as a dataclass. A wrong one ends the process with exit code 2 and names the nearest; --help ends it
    with 0 behind the help page."""
    if "-h" in arguments or "--help" in arguments:
        print(help_page(options, command))
        raise SystemExit(0)
    return tyro.cli(
        options,
        args=together(translate(arguments, options), options),
        prog=f"prospect {command}",
        default=tyro.MISSING_NONPROP if default is None else default,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def translate(arguments: Sequence[str], options: type, accepted: Container[str] = ()) -> list[str]:
    """The command line with flags that other tools call otherwise under our names, where they mean exactly the same and
    are `options` or `accepted`. Raises ConfigError, naming what to set instead, for a name of theirs that does not."""
    own = {f"--{field.name.replace('_', '-')}" for field in fields(typing.cast(Any, options))}
    words: list[str] = []
    for word in arguments:
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if flag.startswith("--") and f"--{name.replace('_', '-')}" not in own:
            ours = same_flag(name)
            explanation = advice(name) if options is TrainConfig else None
            if ours is not None and (ours in own or ours in accepted):
                word = ours + equals + value
            elif explanation is not None:
                raise ConfigError(f"there is no {flag}. {explanation}")
        words.append(word)
    return words


def together(arguments: Sequence[str], options: type) -> list[str]:
    """The command line in which a flag that takes several names, and is given several times, stands once with all of
    them: `--data a --data b` is `--data a b`."""
    hints = typing.get_type_hints(options)
    lists = {f"--{name.replace('_', '-')}" for name, hint in hints.items() if "tuple[str, ...]" in str(hint)}
    words: list[str] = []
    values: dict[str, list[str]] = {}
    into = words
    for word in arguments:
        flag, equals, value = word.partition("=")
        if flag in lists:
            if flag not in values:
                values[flag] = []
                words.append(flag)
            into = values[flag]
            into += [value] if equals else []
        else:
            into = words if word.startswith("--") else into
            into.append(word)
    return [part for word in words for part in (word, *values.get(word, ()))]


def model_first(arguments: Sequence[str]) -> list[str]:
    """A command line whose first word may be the model: `eval runs/first` is `eval --model runs/first`."""
    bare = bool(arguments) and not arguments[0].startswith("-")
    return ["--model", *arguments] if bare else list(arguments)


def split_off(arguments: Sequence[str]) -> tuple[list[str], dict[str, float | str], str | None]:
    """A command line without `--loss.NAME VALUE` and `--config FILE` (or `=VALUE`), which are no fields; the arguments
    of the loss, a VALUE that is no number as text; and the FILE. Raises ConfigError where a value is missing."""
    rest: list[str] = []
    loss_args: dict[str, float | str] = {}
    file: str | None = None
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag != "--config" and not flag.startswith("--loss."):
            rest.append(word)
            continue
        value = value if equals else next(words, "")
        if not value:
            raise ConfigError(f"{flag} needs a value")
        if flag == "--config":
            file = value
            continue
        name = flag.removeprefix("--loss.").replace("-", "_")
        try:
            loss_args[name] = float(value)
        except ValueError:
            loss_args[name] = value
    return rest, loss_args, file


def as_in_run(options: Options, *names: str) -> tuple[Options, ModelOfRun]:
    """The options, in which those of `names` that are not set are as in the run whose folder is `options.model`; and
    what that run says of its model."""
    from prospect.training import run_folder

    run = run_folder.model_of_run(typing.cast(Any, options).model)
    unset: dict[str, Any] = {name: run.options.get(name) for name in names if not getattr(options, name)}
    return replace(typing.cast(Any, options), **unset), run


def refuse_existing(path: str) -> None:
    """Raises ConfigError where something is already there, since nothing is ever overwritten, and for a name that not
    every library can write."""
    store.require_name(path)
    if Path(path).exists():
        raise ConfigError(f"{path} exists: choose another name")


def quiet_loading() -> None:
    """Keep transformers' bars for reading and writing weights, and its warnings about itself, out of our output.

    Downloads from the Hub keep their bars.
    """
    import warnings

    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    unwanted = are_progress_bars_disabled()
    logging.disable_progress_bar()
    if not unwanted:
        enable_progress_bars()
