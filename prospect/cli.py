"""The command line: a table of commands, each imported only when it is called, and what every error ends with.

Exit codes: 0 done, 1 the run failed, 2 wrong usage, data or configuration, 130 Ctrl-C.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prospect.errors import ConfigError, Interrupted, ProspectError, nearest
from prospect.store import disk_error


@dataclass(frozen=True, slots=True)
class Command:
    """`function` is "module:name"; it takes the command's own arguments and returns an exit code."""

    function: str
    help: str


COMMANDS = {
    "train": Command("prospect.commands.training:train", "turn feedback into a better model"),
    "eval": Command("prospect.commands.models:evaluate", "measure a model on held-out feedback"),
    "chat": Command("prospect.commands.models:chat", "talk to a model, or to two side by side"),
    "recommend": Command(
        "prospect.commands.recommend:recommend", "propose loss and settings for a feedback file, with reasons"
    ),
    "losses": Command("prospect.commands.losses:losses", "list the losses, or explain one"),
    "check": Command("prospect.commands.data:check", "look at a feedback file before training on it"),
    "convert": Command("prospect.commands.data:convert", "write any feedback file as Prospect JSONL"),
    "merge": Command("prospect.commands.models:merge", "put a LoRA adapter into its model"),
    "report": Command("prospect.commands.training:report", "write a run's report.html again"),
    "theory": Command("prospect.commands.theory:theory", "the paper's theorems as small experiments"),
    "demo": Command("prospect.commands.story:demo", "live through the whole story on a small model, without network"),
    "sandbox build": Command("prospect.commands.story:sandbox_build", "make the demo's assistant from a seed"),
    "version": Command("prospect.commands.story:version", "the versions that matter for a bug report"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        return _dispatch([a for a in arguments if a != "--debug"])
    except SystemExit as stop:  # from the flag parser: --help, or a wrong flag
        return stop.code if isinstance(stop.code, int) else 2
    except ProspectError as error:
        if debug:
            raise
        _say(str(error), "stopped" if isinstance(error, Interrupted) else "error")
        return error.exit_code
    except KeyboardInterrupt:
        if debug:
            raise
        _say("nothing was saved by this command", "stopped")
        return 130
    except BrokenPipeError:
        # The reader of our output, such as `head`, has gone. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a disk that is full, read-only or not ours: no mistake of the program's
        if debug:
            raise
        _say(str(disk_error(error)), "error")
        return 1


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        arguments[0] = "version"
    name = next((n for n in COMMANDS if arguments[: len(n.split())] == n.split()), None)
    if name is None:
        asked = " ".join(arguments[:2] if arguments[0] == "sandbox" else arguments[:1])
        raise ConfigError(f'there is no command "{asked}".{nearest(asked, COMMANDS)} "prospect --help" lists them')
    module, _, function = COMMANDS[name].function.partition(":")
    run: Callable[[list[str]], int] = getattr(importlib.import_module(module), function)
    return run(arguments[len(name.split()) :])


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: prospect COMMAND ...",
            "",
            "Prospect turns thumbs up and thumbs down into a better language model.",
            "",
            *lines,
            "",
            '"prospect COMMAND --help" shows a command\'s flags. --debug shows the traceback of an error.',
        ]
    )


def _say(message: str, kind: str) -> None:
    """One message on stderr, coloured where that is a terminal; never wrapped, so that it can be searched for."""
    from rich.console import Console
    from rich.text import Text

    colour = "bold red" if kind == "error" else "bold yellow"
    Console(stderr=True, soft_wrap=True).print(Text.assemble((f"{kind}: ", colour), message))


if __name__ == "__main__":
    sys.exit(main())
