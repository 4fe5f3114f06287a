"""`prospect train` and `prospect report`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from prospect.commands.flags import parse, quiet_loading, take, take_loss_arguments, typed_names
from prospect.errors import ConfigError
from prospect.train.config import TrainConfig, from_dict, load_options


def train(arguments: list[str]) -> int:
    """`prospect train`: TrainConfig's fields are the flags; --config and --loss.NAME are taken out before."""
    command = shlex.join(["prospect", "train", *arguments])
    arguments, loss_args = take_loss_arguments(arguments)
    arguments, path = take(arguments, "--config")
    options = {} if path is None else load_options(path)
    start = from_dict(options, path or "")
    if "-h" in arguments or "--help" in arguments:
        print(TRAIN_HELP)
    config = parse(TrainConfig, arguments, "train", start)
    config = replace(config, loss_args=start.loss_args | config.loss_args | loss_args)
    typed = frozenset(options) | typed_names(arguments) | ({"loss_args"} if loss_args else set())

    from prospect.run import run

    quiet_loading()
    run(config, command=command, typed=typed)
    return 0


TRAIN_HELP = """\
Two flags besides those below:
  --config FILE        a YAML file with any of these options, in the spelling batch_size; flags win over it
  --loss.NAME VALUE    an argument of the loss, such as --loss.beta 0.05
"""


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
