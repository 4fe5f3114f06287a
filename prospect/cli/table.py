"""The table of commands: names, functions and a line of help each. Nothing is imported before it is called."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Command:
    """`function` is "module:name" in prospect.cli; it takes the command's own arguments and returns an exit code.
    `options` is the name of the dataclass of its flags in that module."""

    function: str
    help: str
    options: str

    def load(self) -> Callable[[list[str]], int]:
        """The function, imported now."""
        run: Callable[[list[str]], int] = _imported(self.function)
        return run

    def load_options(self) -> type:
        """The dataclass of its flags."""
        options: type = _imported(f"{self.function.partition(':')[0]}:{self.options}")
        return options


def _imported(place: str) -> Any:
    """What is called "module:name" in prospect.cli."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"prospect.cli.{module}"), name)


COMMANDS = {
    "train": Command("training:train", "turn feedback into a better model", "TrainConfig"),
    "eval": Command("models:evaluate", "measure a model on held-out feedback", "EvalOptions"),
    "chat": Command("models:chat", "talk to a model, or to two side by side", "ChatOptions"),
    "recommend": Command("recommend:recommend", "propose loss and settings for a feedback file", "RecommendOptions"),
    "losses": Command("losses:losses", "list the losses, or explain one", "LossesOptions"),
    "check": Command("data:check", "look at a feedback file before training on it", "CheckOptions"),
    "convert": Command("data:convert", "write any feedback file as Prospect JSONL", "ConvertOptions"),
    "merge": Command("models:merge", "put a LoRA adapter into its model", "MergeOptions"),
    "report": Command("training:report", "write a run's report.html again", "ReportOptions"),
    "demo": Command("story:demo", "live through the whole story, without network", "DemoOptions"),
    "completion": Command("completion:completion", "complete commands and flags in a shell", "CompletionOptions"),
    "version": Command("story:version", "the versions that matter for a bug report", "VersionOptions"),
}
