"""Ctrl-C, a closed terminal and a polite kill as a question that the run asks itself between two steps."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

PATIENCE = 1.0
"""Seconds after which a second Ctrl-C is meant as one. torchrun passes on the Ctrl-C that its workers have had, too."""


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Within, Ctrl-C, SIGTERM and SIGHUP raise a flag, which the yielded function reads; another Ctrl-C a second later
    stops at once.

    In any other than the main thread Python delivers no signals, and the flag stays down. SIGHUP that somebody ignores,
    as nohup does, stays ignored.
    """
    since: list[float] = []

    def note(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and since and now - since[0] >= PATIENCE:
            raise KeyboardInterrupt
        since.append(now)

    names = ("SIGINT", "SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {n: signal.signal(n, note) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}
    try:
        yield lambda: bool(since)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
