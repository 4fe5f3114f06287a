"""The command line: its commands, each imported only when it is called, and what every error ends with.

Exit codes: 0 done, 1 the run failed, 2 wrong usage, data or configuration, 130 Ctrl-C.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name

from prospect.data.store import disk_error
from prospect.errors import ConfigError, Interrupted, ProspectError, nearest
from prospect.training import process


@dataclass(frozen=True, slots=True)
class Command:
    """A command: the module of prospect.cli that holds it, its function (the arguments behind the command's name ->
    exit code), the dataclass of its options, and a line of help. The module is imported on first use."""

    module: str
    function: str
    options: str
    help: str

    def load(self) -> Callable[[list[str]], int]:
        """The function."""
        run: Callable[[list[str]], int] = resolve_name(f"prospect.cli.{self.module}:{self.function}")
        return run

    def load_options(self) -> type:
        """The dataclass of its options."""
        options: type = resolve_name(f"prospect.cli.{self.module}:{self.options}")
        return options


COMMANDS = {
    "train": Command("training", "train", "TrainConfig", "turn feedback into a better model"),
    "eval": Command("models", "evaluate", "EvalOptions", "measure a model on held-out feedback"),
    "chat": Command("chat", "chat", "ChatOptions", "talk to a model, or to two side by side"),
    "sample": Command("compare", "sample", "SampleOptions", "let a model answer prompts, into a file"),
    "compare": Command("compare", "compare", "CompareOptions", "is one model better than another? A judge says"),
    "recommend": Command("data", "recommend", "RecommendOptions", "propose loss and settings for a feedback file"),
    "losses": Command("losses", "losses", "LossesOptions", "list the losses, or explain one"),
    "check": Command("data", "check", "CheckOptions", "look at a feedback file before training on it"),
    "convert": Command("data", "convert", "ConvertOptions", "write any feedback file as Prospect JSONL"),
    "merge": Command("models", "merge", "MergeOptions", "put a LoRA adapter into its model"),
    "report": Command("training", "report", "ReportOptions", "write a run's report.html again"),
    "demo": Command("training", "demo", "DemoOptions", "live through the whole story, without network"),
    "completion": Command("completion", "completion", "CompletionOptions", "complete commands and flags in a shell"),
    "version": Command("completion", "version", "VersionOptions", "the versions that matter for a bug report"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit code."""
    arguments = [word.replace("\0", "") for word in (sys.argv[1:] if argv is None else argv)]  # no shell can pass one
    for name in ("stdout", "stderr"):  # closed from the start: nothing else may be given its number
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):  # what they cannot encode, in ASCII say, is written as an escape
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    process.settle()
    try:
        words = [word for word in arguments if word not in ("--debug", "--quiet")]
        try:
            code = _dispatch(words, quiet="--quiet" in arguments)
        except SystemExit as stop:  # from the flag parser: --help, or a wrong flag
            code = stop.code if isinstance(stop.code, int) else 2
        sys.stdout.flush()  # here, where a broken pipe is expected
        return code
    except BrokenPipeError:
        from prospect.training.console import discard

        discard(sys.stdout)  # its reader, such as `head`, has gone; Python would complain once more at exit
        return 0
    except (ProspectError, KeyboardInterrupt, OSError) as error:
        if "--debug" in arguments:
            raise
        return _explain(error)


def _dispatch(arguments: list[str], *, quiet: bool) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if arguments else 2
    name, *rest = arguments
    name = "version" if name == "--version" else name
    if name not in COMMANDS:
        raise ConfigError(f'there is no command "{name}".{nearest(name, COMMANDS)} "prospect --help" lists them')
    from prospect.training.console import silent_notes

    with silent_notes(quiet):
        return COMMANDS[name].load()(rest)


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = "\n".join(f"  {name:{width}}{command.help}" for name, command in COMMANDS.items())
    return f"""\
usage: prospect COMMAND ...

Prospect turns thumbs up and thumbs down into a better language model.

{lines}

"prospect COMMAND --help" shows a command's flags. Everywhere: --quiet leaves out
progress and notes, --debug shows the traceback of an error."""


def _explain(error: BaseException) -> int:
    """One message on stderr, coloured where that is a terminal; never wrapped, so that it can be searched for."""
    from rich.text import Text

    from prospect.training.console import Console

    kind, message, code = "error", str(error), 1
    if isinstance(error, ProspectError):
        kind, code = "stopped" if isinstance(error, Interrupted) else "error", error.exit_code
    elif isinstance(error, KeyboardInterrupt):
        kind, message, code = "stopped", "nothing was saved by this command", 130
    elif isinstance(error, OSError):  # a disk that is full, read-only or not ours: no mistake of the program's
        message = str(disk_error(error))
    colour = "bold red" if kind == "error" else "bold yellow"
    Console(stderr=True, soft_wrap=True).print(Text.assemble((f"{kind}: ", colour), message))
    return code


if __name__ == "__main__":
    sys.exit(main())
