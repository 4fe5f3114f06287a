"""The door to the terminal. Feedback, models and file names are other people's text, and a terminal obeys what it is
sent: an escape sequence in an answer could set its title, fill its clipboard (OSC 52) or hide what stands before it.

    Console        rich's, through which text passes and orders do not
    printable      the same for text that is written in another way
    json_text      JSON to print: nothing is lost, since JSON has escapes of its own

Results go to stdout. What people are told meanwhile goes to stderr; `--quiet` leaves progress and notes out, never
warnings and errors.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import rich.console
from rich.segment import Segment

_CONTROLS = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
_CONTROLS |= {0x7F: "\u2421"} | dict.fromkeys(range(0x80, 0xA0), "\ufffd")


def printable(text: str) -> str:
    """The text with a picture in the place of each control character but line feed and tab: "\u241b" for escape."""
    return text.translate(_CONTROLS)


def json_text(values: Any) -> str:
    """Indented JSON, with those control characters escaped that JSON would let stand (delete and 0x80 to 0x9f)."""
    text = json.dumps(values, ensure_ascii=False, indent=1)
    return re.sub("[\x7f-\x9f]", lambda match: f"\\u{ord(match[0]):04x}", text)


class Console(rich.console.Console):
    """rich's console, whose own orders (colours, cursor) pass, and none that stand in a text.

    What is told on stderr on the way is no result: where nobody can read it any more (a closed pipe or terminal, a full
    disk behind it), it is dropped and the work goes on. On stdout OSError is raised.
    """

    def on_broken_pipe(self) -> None:
        """Called while a BrokenPipeError is handled: rich would end the process with exit code 1."""
        raise

    def _check_buffer(self) -> None:
        """Where rich writes all that was printed."""
        try:
            super()._check_buffer()
        except OSError:
            if not self.stderr:
                raise
            discard(sys.stderr)
            super()._check_buffer()

    def render(
        self, renderable: rich.console.RenderableType, options: rich.console.ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """As rich does, with `printable` text."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)


def discard(stream: Any) -> None:
    """Let go of all that is written to a standard stream from now on, by whomever, and of what waits in it."""
    with suppress(OSError, ValueError, AttributeError):  # it is no file
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, stream.fileno())
        os.close(sink)


_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)


def quiet() -> bool:
    """Whether progress and notes are left out."""
    return _QUIET.get()


@contextmanager
def silent_notes(silent: bool = True) -> Iterator[None]:
    """Leave progress and notes out while this lasts."""
    token = _QUIET.set(silent or _QUIET.get())
    try:
        yield
    finally:
        _QUIET.reset(token)
