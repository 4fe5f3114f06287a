"""What each command of the command line does: its flags as a frozen dataclass, and a function that runs it.

Every function takes the arguments behind the command's name and returns an exit code. Heavy imports stay inside them, so
that --help and wrong flags answer at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Literal, TypeVar

import tyro
from tyro.conf import FlagCreatePairsOff, Positional

from prospect.errors import ConfigError
from prospect.train.config import TrainConfig, from_dict, load_yaml

Options = TypeVar("Options")


def _parse(options: type[Options], arguments: Sequence[str], command: str, default: Options | None = None) -> Options:
    """The flags as a dataclass. A wrong one ends the process with exit code 2 and names the nearest."""
    return tyro.cli(
        options,
        args=arguments,
        prog=f"prospect {command}",
        default=tyro.MISSING_NONPROP if default is None else default,
        config=(FlagCreatePairsOff,),
    )


def train(arguments: list[str]) -> int:
    """`prospect train`: TrainConfig's fields are the flags; --config FILE and --loss.NAME VALUE are taken out before."""
    arguments, loss_args = take_loss_arguments(arguments)
    arguments, path = take(arguments, "--config")
    start = TrainConfig() if path is None else from_dict(load_yaml(path), path)
    if "-h" in arguments or "--help" in arguments:
        print(TRAIN_HELP)
    config = _parse(TrainConfig, arguments, "train", start)
    config = replace(config, loss_args=start.loss_args | config.loss_args | loss_args)

    from prospect.run import execute

    execute(config)
    return 0


TRAIN_HELP = """\
Two flags besides those below:
  --config FILE        a YAML file with any of these options, in the spelling batch_size; flags win over it
  --loss.NAME VALUE    an argument of the loss, such as --loss.beta 0.05
"""


def take_loss_arguments(arguments: Sequence[str]) -> tuple[list[str], dict[str, float]]:
    """Split `--loss.NAME VALUE` and `--loss.NAME=VALUE` off a command line. Raises ConfigError for a VALUE that is no
    number."""
    rest: list[str] = []
    found: dict[str, float] = {}
    words = iter(arguments)
    for word in words:
        if not word.startswith("--loss."):
            rest.append(word)
            continue
        flag, equals, value = word.partition("=")
        value = value if equals else next(words, "")
        try:
            found[flag.removeprefix("--loss.").replace("-", "_")] = float(value)
        except ValueError:
            raise ConfigError(f'{flag} needs a number, not "{value}"') from None
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


@dataclass(frozen=True)
class EvalOptions:
    """Measure a model on held-out feedback: is its implied reward higher for what people liked?"""

    model: str
    """The trained model: DIR/model of a run, or an adapter's folder."""
    reference: str
    """The model it started from."""
    data: str
    """Held-out feedback: prompts that were not trained on."""
    threshold: str | None = None
    """Turns scores into thumbs: mean, median, or a number."""
    format: str = "auto"
    """The data's layout; auto detects it."""
    beta: float = 0.1
    """What turns log-ratios into rewards: the run's beta."""
    chat_template: str | None = None
    """A Jinja file, or "plain", for models without a chat template."""
    precision: Literal["auto", "bf16", "fp32", "fp64"] = "auto"
    """auto is bf16 where the hardware has it."""
    device: str = "auto"
    """auto, cpu or cuda."""
    seed: int = 0
    """Of the bootstrap and the mismatched partners."""
    out: str | None = None
    """Also write the figures to this JSON file."""
    json: bool = False
    """Print JSON instead of text."""


@dataclass(frozen=True)
class ChatOptions:
    """Talk to a model in the terminal. /reset forgets the conversation, /quit ends it."""

    model: str
    """The model to talk to: a folder, an adapter's folder, or a Hub name."""
    compare: str | None = None
    """A second model; its answers stand beside the first one's."""
    system: str | None = None
    """A system message before the conversation."""
    temperature: float = 1.0
    """1 samples from the model as it is; 0 always takes the likeliest token."""
    top_p: float = 1.0
    """Sample from the fewest tokens that hold this much probability."""
    max_new_tokens: int = 512
    """Longest answer in tokens."""
    seed: int = 0
    """Same seed, same answers."""
    chat_template: str | None = None
    """A Jinja file, or "plain", for a model without a chat template."""
    precision: Literal["auto", "bf16", "fp32", "fp64"] = "auto"
    """auto is bf16 where the hardware has it."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.max_new_tokens < 1:
            raise ConfigError(
                "expected --temperature of 0 or more, --top-p above 0 and up to 1, --max-new-tokens of 1 or more"
            )


def chat(arguments: list[str]) -> int:
    """`prospect chat`"""
    options = _parse(ChatOptions, arguments, "chat")
    from rich.console import Console

    from prospect.chat import Manner, Talk, converse, typed
    from prospect.engine.models import load

    manner = Manner(options.temperature, options.top_p, options.max_new_tokens, options.seed, options.system)
    names = [options.model] if options.compare is None else [options.model, options.compare]
    talks = [
        Talk(
            name,
            load(name, precision=options.precision, device=options.device, chat_template=options.chat_template),
            manner,
        )
        for name in names
    ]
    console = Console()
    converse(talks, typed(console), console)
    return 0


@dataclass(frozen=True)
class CheckOptions:
    """Look at a feedback file before training on it. Exit code 0 with warnings, 2 with errors."""

    file: Positional[str]
    """The feedback: a file, a `datasets` folder, or a Hub name."""
    model: str | None = None
    """Count tokens, and what would be dropped or cut, as this model does."""
    heldout: str | None = None
    """Held-out feedback: are its prompts really apart?"""
    show: int = 0
    """Print so many rows: prompt, completion and, with --model, the trained tokens in colour."""
    json: bool = False
    """Print JSON instead of text."""
    keep_going: str | None = None
    """Write the good rows to this file (OUT.jsonl) and the bad ones with their reasons beside it (OUT.bad.jsonl)."""
    format: str = "auto"
    """The data's layout; auto detects it."""
    threshold: str | None = None
    """Turns scores into thumbs: mean, median, or a number."""
    max_length: int | None = None
    """Longest prompt plus completion in tokens. Default: the model's context."""
    over_long: Literal["drop", "cut_prompt", "cut_completion", "error"] = "drop"
    """What training would do with what is longer."""
    chat_template: str | None = None
    """A Jinja file, or "plain", for a model without a chat template."""


@dataclass(frozen=True)
class ConvertOptions:
    """Write any feedback file as Prospect JSONL."""

    input: Positional[str]
    """The feedback: a file, a `datasets` folder, or a Hub name."""
    output: Positional[str]
    """The JSONL file to create (.gz compresses it). An existing one is never overwritten."""
    format: str = "auto"
    """The input's layout; auto detects it."""


def convert(arguments: list[str]) -> int:
    """`prospect convert`"""
    options = _parse(ConvertOptions, arguments, "convert")
    from prospect.feedback.formats import load, write
    from prospect.feedback.records import inventory

    refuse_existing(options.output)
    feedback = load(options.input, format=options.format)
    write(feedback.records, Path(options.output))
    print(f"{options.output}: {inventory(feedback.records)}, read as {feedback.format}")
    return 0


@dataclass(frozen=True)
class MergeOptions:
    """Put a LoRA adapter into its model: the result is a plain model folder."""

    adapter: Positional[str]
    """The adapter's folder, such as DIR/model of a run with --lora."""
    out: Positional[str]
    """The model folder to create."""


def merge(arguments: list[str]) -> int:
    """`prospect merge`"""
    options = _parse(MergeOptions, arguments, "merge")
    from prospect.engine.adapters import merge as merge_adapter

    refuse_existing(options.out)
    merge_adapter(options.adapter, options.out)
    print(f"The merged model is in {options.out}")
    return 0


@dataclass(frozen=True)
class ReportOptions:
    """Write a run's report.html again, from what lies in its folder."""

    folder: Positional[str]
    """The run folder."""


def report(arguments: list[str]) -> int:
    """`prospect report`"""
    options = _parse(ReportOptions, arguments, "report")
    from prospect.report.page import write_report

    if not (Path(options.folder) / "config.json").exists():
        raise ConfigError(f"{options.folder} is no run folder: it has no config.json")
    print(write_report(Path(options.folder)))
    return 0


@dataclass(frozen=True)
class DemoOptions:
    """Live through the whole story on a small model: answers, thumbs, a check, training, before and after."""

    seed: int = 0
    """Changes everything: the questions, the answers, the thumbs, the order of training."""
    out: str = "demo"
    """The folder to create."""


@dataclass(frozen=True)
class BuildOptions:
    """Make the demo's assistant from a seed: a tokenizer and a tiny model schooled on answers of mixed quality."""

    out: str
    """The model folder to create."""
    seed: int = 0
    """Same seed and machine, same assistant."""


def sandbox_build(arguments: list[str]) -> int:
    """`prospect sandbox build`"""
    options = _parse(BuildOptions, arguments, "sandbox build")
    from prospect.sandbox.build import build

    print(f"The assistant is in {build(options.out, seed=options.seed)}")
    return 0


def version(arguments: list[str]) -> int:
    """`prospect version`"""
    if arguments:
        raise ConfigError(f'"prospect version" takes no arguments, not {" ".join(arguments)}')
    from prospect import __version__

    print(f"prospect {__version__}")
    print(f"python {sys.version.split()[0]}")
    for name in ("torch", "transformers", "peft", "datasets", "numpy"):
        try:
            print(f"{name} {installed(name)}")
        except PackageNotFoundError:
            print(f"{name} is not installed")
    return 0


def refuse_existing(path: str) -> None:
    """Raises ConfigError where something is already there: nothing is ever overwritten."""
    if Path(path).exists():
        raise ConfigError(f"{path} exists: choose another name")
