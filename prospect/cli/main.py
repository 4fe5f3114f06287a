"""The command line: commands, each imported only when it is called, and what every error ends with.

Exit codes: 0 done, 1 the run failed, 2 wrong usage, data or configuration, 130 Ctrl-C.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from prospect.cli.table import COMMANDS
from prospect.data.store import disk_error
from prospect.errors import (
    ConfigError,
    Interrupted,
    ProspectError,
    nearest,
)
from prospect.training.terminal import hushed


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit code."""
    arguments = [word.replace("\0", "") for word in (sys.argv[1:] if argv is None else argv)]  # no shell can pass one
    for name in ("stdout", "stderr"):  # closed from the start: nothing else may be given its number
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):  # what they cannot encode, in ASCII say, is written as an escape
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    debug = "--debug" in arguments
    try:
        with hushed("--quiet" in arguments):
            try:
                code = _dispatch([a for a in arguments if a not in ("--debug", "--quiet")])
            except SystemExit as stop:  # from the flag parser: --help, or a wrong flag
                code = stop.code if isinstance(stop.code, int) else 2
            sys.stdout.flush()  # here, where a broken pipe is expected
            return code
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
        from prospect.training.console import drop

        drop(sys.stdout)  # its reader, such as `head`, has gone; Python would complain once more at exit
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
    name, *rest = arguments
    if name not in COMMANDS:
        raise ConfigError(f'there is no command "{name}".{nearest(name, COMMANDS)} "prospect --help" lists them')
    return COMMANDS[name].load()(rest)


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
            '"prospect COMMAND --help" shows a command\'s flags. Everywhere: --quiet leaves out',
            "progress and notes, --debug shows the traceback of an error.",
        ]
    )


def _say(message: str, kind: str) -> None:
    """One message on stderr, coloured where that is a terminal; never wrapped, so that it can be searched for."""
    from rich.text import Text

    from prospect.training.console import Console

    colour = "bold red" if kind == "error" else "bold yellow"
    Console(stderr=True, soft_wrap=True).print(Text.assemble((f"{kind}: ", colour), message))


if __name__ == "__main__":
    sys.exit(main())
