"""What people are told on stderr while a command works. Results go to stdout; `--quiet` leaves progress and notes out,
never warnings and errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)


def quiet() -> bool:
    """Whether progress and notes are left out."""
    return _QUIET.get()


@contextmanager
def hushed(silent: bool = True) -> Iterator[None]:
    """Leave progress and notes out while this lasts."""
    token = _QUIET.set(silent or _QUIET.get())
    try:
        yield
    finally:
        _QUIET.reset(token)
