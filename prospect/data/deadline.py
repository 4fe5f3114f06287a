"""A time limit for foreign Python code, such as a chat template: in any thread, on any platform.

    text = within(10, lambda: template.render(...))      # TimeoutError after 10 s

Signals reach the main thread only, and a process of its own costs seconds to start. So one watchdog thread raises an
exception inside the thread that is late, which CPython offers for this purpose (PyThreadState_SetAsyncExc). The
exception arrives between two steps of Python code: loops and recursion end, one long call into C runs to its own end.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

TICK = 0.05
"""Seconds between two looks of the watchdog."""


class _Overtime(BaseException):
    """Raised inside late code. Not an Exception, so that no handler in that code swallows it."""


_deadlines: dict[int, float] = {}
"""Thread -> when its call must be over. A thread that is missing here is not interrupted."""
_lock = threading.Lock()
_watchdog: threading.Thread | None = None


def within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` returns. Raises TimeoutError where it runs for more than `seconds`, and whatever it raises. Calls do
    not nest."""
    thread = threading.get_ident()
    arrived = False
    try:
        _start(thread, seconds)
        try:
            return call()
        except _Overtime:
            arrived = True
            raise
        finally:
            with _lock:
                late = _deadlines.pop(thread, None) is None
            if late and not arrived:  # the exception is on its way, and must not arrive behind this function
                time.sleep(1)
                raise _Overtime
    except _Overtime:
        raise TimeoutError(f"it did not end within {seconds:g} s") from None


def _start(thread: int, seconds: float) -> None:
    global _watchdog
    with _lock:
        assert thread not in _deadlines, "calls do not nest"
        _deadlines[thread] = time.monotonic() + seconds
        if _watchdog is None or not _watchdog.is_alive():  # a forked process starts without one
            _watchdog = threading.Thread(target=_watch, name="prospect-deadline", daemon=True)
            _watchdog.start()


def _watch() -> None:
    idle = 0
    while idle * TICK < 5:
        time.sleep(TICK)
        with _lock:
            idle = 0 if _deadlines else idle + 1
            now = time.monotonic()
            for thread in [t for t, due in _deadlines.items() if due < now]:
                del _deadlines[thread]
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_Overtime))
