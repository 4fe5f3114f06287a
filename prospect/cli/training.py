"""`prospect train`, `prospect report` and `prospect demo`: a run, its report once more, and the whole story."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from prospect.cli.options import Flag, page, parse, quiet_loading, split_off, translate
from prospect.errors import ConfigError
from prospect.training.config import TrainConfig, from_dict, load_options

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


def train(arguments: list[str]) -> int:
    """`prospect train`: TrainConfig's fields are the flags; --config and --loss.NAME are split off before."""
    command = shlex.join(["prospect", "train", *arguments])
    arguments, loss_args, path = split_off(translate(arguments, TrainConfig, LOSS_FLAGS))
    options, of_a_run = ({}, False) if path is None else load_options(path)
    config = _config(arguments, loss_args, from_dict(options, path or ""))
    flags = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in arguments if word[:2] == "--"}

    from prospect.run import run
    from prospect.training import run_folder

    if path is not None and of_a_run:
        run_folder.require_trust(config, _config(arguments, loss_args, TrainConfig()), Path(path))
    quiet_loading()
    run(config, command=command, set_by_user=frozenset(options) | flags | ({"loss_args"} if loss_args else set()))
    return 0


def _config(arguments: list[str], loss_args: dict[str, float | str], start: TrainConfig) -> TrainConfig:
    """The flags and the loss's arguments put over `start`."""
    config = parse(TrainConfig, arguments, "train", start, help_page=_help)
    return replace(config, loss_args=start.loss_args | config.loss_args | loss_args)


def _help(options: type, command: str) -> str:
    """The six options that matter first, then the others in groups."""
    six = ("model", "data", "out", "eval_fraction", "learning_rate", "lora")
    most = ("Most runs need no more than these", six)
    return page(options, command, first=most, groups=GROUPS, more=[CONFIG], example=EXAMPLE)


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


@dataclass(frozen=True)
class DemoOptions:
    """Live through the whole story on a small model: answers, thumbs, a check, training, before and after."""

    seed: int = 0
    """Changes everything: the questions, the answers, the thumbs, the order of training."""
    out: str = "demo"
    """The folder to create."""
    baselines: bool = False
    """Train two more models to compare with, for twice the time: one imitates the answers with a thumb up (SFT), one
    gets the thumbs shuffled."""


def demo(arguments: list[str]) -> int:
    """`prospect demo`"""
    options = parse(DemoOptions, arguments, "demo")
    from prospect.demo.story import run_demo

    quiet_loading()
    run_demo(options.out, options.seed, baselines=options.baselines)
    return 0
