"""`prospect train` and `prospect report`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from prospect.cli import help
from prospect.cli.flags import (
    parse,
    quiet_loading,
    take,
    take_loss_arguments,
    translated,
    typed_names,
)
from prospect.cli.help import Flag
from prospect.errors import ConfigError
from prospect.training.config import TrainConfig, from_dict, load_options


def train(arguments: list[str]) -> int:
    """`prospect train`: TrainConfig's fields are the flags; --config and --loss.NAME are taken out before."""
    command = shlex.join(["prospect", "train", *arguments])
    arguments = translated(arguments, TrainConfig, LOSS_FLAGS)
    arguments, loss_args = take_loss_arguments(arguments)
    arguments, path = take(arguments, "--config")
    options, of_a_run = ({}, False) if path is None else load_options(path)
    start = from_dict(options, path or "")
    config = _config(arguments, loss_args, start)
    typed = frozenset(options) | typed_names(arguments) | ({"loss_args"} if loss_args else set())

    from prospect.run import run
    from prospect.training import folder as runfolder

    if path is not None and of_a_run:
        runfolder.require_trust(config, _config(arguments, loss_args, TrainConfig()), Path(path))
    quiet_loading()
    run(config, command=command, typed=typed)
    return 0


def _config(arguments: list[str], loss_args: dict[str, float | str], start: TrainConfig) -> TrainConfig:
    """The flags and the loss's arguments put over `start`."""
    config = parse(TrainConfig, arguments, "train", start, page=train_help)
    return replace(config, loss_args=start.loss_args | config.loss_args | loss_args)


LOSS_FLAGS = ("--loss.beta", "--loss.desirable-weight", "--loss.undesirable-weight")
"""Arguments of losses that may be given under the names that other tools have for them."""

GROUPS = {
    "Going on": "resume",
    "The loss": "loss",
    "The feedback": "format",
    "The model and the machine": "lora",
    "Steps": "batch_size",
    "The optimizer": "learning_rate",
    "While it runs": "eval_every",
}
"""Headings of the help page, and the field of TrainConfig with which each begins."""

CONFIG = Flag(
    "config", "--config", "FILE", (), "Options in a YAML file, as batch_size: 32, or a run's config.json; flags win."
)

EXAMPLE = """\
prospect train --model my-model --data thumbs.jsonl --out runs/first
prospect train --config runs/first/config.json --out runs/again --lora r=16"""


def train_help(options: type, command: str) -> str:
    """The six options that matter first, then the others in groups."""
    six = ("model", "data", "out", "eval_fraction", "learning_rate", "lora")
    most = ("Most runs need no more than these", six)
    return help.page(options, command, first=most, groups=GROUPS, more=[CONFIG], example=EXAMPLE)


@dataclass(frozen=True)
class ReportOptions:
    """Write a run's report.html again, from what lies in its folder."""

    folder: Annotated[Positional[str], arg(metavar="FOLDER")]
    """The run folder."""


def report(arguments: list[str]) -> int:
    """`prospect report`"""
    options = parse(ReportOptions, arguments, "report")
    from prospect.report.page import write_report

    for name in ("config.json", "metrics.jsonl"):  # a model folder has the first of them, too
        if not (Path(options.folder) / name).exists():
            raise ConfigError(f"{options.folder} is no run folder: it has no {name}")
    print(write_report(Path(options.folder)))
    return 0
