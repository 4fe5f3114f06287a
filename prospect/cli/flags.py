"""Command lines to dataclasses: every flag, default and help text comes from a frozen dataclass, through tyro."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast

import tyro

from prospect.cli import help
from prospect.data import store
from prospect.errors import ConfigError
from prospect.training import names
from prospect.training.config import TrainConfig

Options = TypeVar("Options")


def parse(
    options: type[Options],
    arguments: Sequence[str],
    command: str,
    default: Options | None = None,
    *,
    page: Callable[[type, str], str] = help.page,
) -> Options:
    """The flags as a dataclass. A wrong one ends the process with exit code 2 and names the nearest; --help ends it
    with 0 behind the help `page`."""
    if "-h" in arguments or "--help" in arguments:
        print(page(options, command))
        raise SystemExit(0)
    return tyro.cli(
        options,
        args=translated(arguments, options),
        prog=f"prospect {command}",
        default=tyro.MISSING_NONPROP if default is None else default,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def translated(arguments: Sequence[str], options: type, accepted: Container[str] = ()) -> list[str]:
    """The command line with flags that other tools call otherwise under our names, where they mean exactly the same and
    are `options` or `accepted`. Raises ConfigError, naming what to set instead, for a name of theirs that does not."""
    own = {f"--{field.name.replace('_', '-')}" for field in fields(cast(Any, options))}
    words: list[str] = []
    for word in arguments:
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or f"--{name.replace('_', '-')}" in own:
            words.append(word)
            continue
        ours = names.same_flag(name)
        advice = names.advice(name) if options is TrainConfig else None
        if ours is not None and (ours in own or ours in accepted):
            words.append(ours + equals + value)
        elif advice is not None:
            raise ConfigError(f"there is no {flag}. {advice}")
        else:
            words.append(word)
    return words


def model_first(arguments: Sequence[str]) -> list[str]:
    """A command line whose first word may be the model: `eval runs/first` is `eval --model runs/first`."""
    bare = bool(arguments) and not arguments[0].startswith("-")
    return ["--model", *arguments] if bare else list(arguments)


def take_loss_arguments(arguments: Sequence[str]) -> tuple[list[str], dict[str, float | str]]:
    """Split `--loss.NAME VALUE` and `--loss.NAME=VALUE` off a command line; a VALUE that is no number stays text.

    Raises ConfigError where it is missing.
    """
    rest: list[str] = []
    found: dict[str, float | str] = {}
    words = iter(arguments)
    for word in words:
        if not word.startswith("--loss."):
            rest.append(word)
            continue
        flag, equals, value = word.partition("=")
        value = value if equals else next(words, "")
        if not value:
            raise ConfigError(f"{flag} needs a value")
        name = flag.removeprefix("--loss.").replace("-", "_")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = value
    return rest, found


def take(arguments: Sequence[str], flag: str) -> tuple[list[str], str | None]:
    """Split one `flag VALUE` or `flag=VALUE` off a command line. Raises ConfigError where the VALUE is missing."""
    rest: list[str] = []
    found: str | None = None
    words = iter(arguments)
    for word in words:
        if word == flag:
            found = next(words, None)
            if found is None:
                raise ConfigError(f"{flag} needs a value")
        elif word.startswith(f"{flag}="):
            found = word.removeprefix(f"{flag}=")
        else:
            rest.append(word)
    return rest, found


def typed_names(arguments: Sequence[str]) -> frozenset[str]:
    """The options that a command line sets, in Python's spelling, whatever their values."""
    flags = (word.partition("=")[0] for word in arguments if word.startswith("--"))
    return frozenset(flag.removeprefix("--").replace("-", "_") for flag in flags)


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
