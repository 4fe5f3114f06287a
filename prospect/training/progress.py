"""Progress for people: bars where somebody watches, lines where the output goes to a file. Neither is ever silent for
long, even while one piece of work goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from prospect.training.console import Console
from prospect.training.terminal import quiet

SILENCE = 5.0
"""Seconds without a line after which a file is told what is going on."""
PATIENCE = 0.1
"""The share of the work's time so far that may pass in silence instead, once that is longer: a day gives dozens of
lines, not thousands."""

Update = Callable[..., None]
"""update(done, figures=""): how much is done, and figures to show beside it."""


@dataclass
class _Work:
    """One piece of work that is going on."""

    title: str
    total: int | None
    done: int
    written: int
    figures: str = ""
    began: float = field(default_factory=time.monotonic)

    def line(self) -> str:
        count = f" {self.done}/{self.total}" if self.total else ""
        return f"{self.title}{count}  {self.figures}".rstrip()


class Bars:
    """Pieces of work on one console, each perhaps within another."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress: Progress | None = None
        self._works: list[_Work] = []
        self._heard = 0.0
        self._lock = threading.Lock()

    @contextmanager
    def bar(self, title: str, total: int | None = None, start: int = 0) -> Iterator[Update]:
        """A piece of work of `total` units (None: not known), of which `start` are done."""
        if quiet() or self.console.quiet:
            yield lambda done, figures="": None
            return
        with (self._drawn if self.console.is_terminal else self._written)(title, total, start) as update:
            yield update

    def heard(self) -> None:
        """Something else was printed just now."""
        self._heard = time.monotonic()

    @contextmanager
    def _drawn(self, title: str, total: int | None, start: int) -> Iterator[Update]:
        outermost = self._progress is None
        progress = self._progress or Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self.console,
            refresh_per_second=4,
            transient=total is None,
        )
        self._progress = progress
        if outermost:
            progress.start()
        task = progress.add_task(title, total=total, completed=start, figures="")
        try:
            yield lambda done, figures="": progress.update(task, completed=done, figures=figures)
        finally:
            if outermost:
                progress.stop()
                self._progress = None
            else:
                progress.remove_task(task)

    @contextmanager
    def _written(self, title: str, total: int | None, start: int) -> Iterator[Update]:
        work, outermost = _Work(title, total, start, start), not self._works
        self._works.append(work)
        over = threading.Event()
        if outermost:
            self.heard()
            threading.Thread(target=self._watch, args=(over,), daemon=True).start()

        def update(done: int, figures: str = "") -> None:
            work.done, work.figures = done, figures
            if total and (done - work.written) * 10 >= total:  # about ten lines, however long it takes
                self._write(work)

        try:
            yield update
        finally:
            over.set()
            self._works.remove(work)

    def _write(self, work: _Work, more: str = "") -> None:
        with self._lock:
            work.written = work.done
            self.console.print(work.line() + more, highlight=False, soft_wrap=True, markup=False)
            self.heard()

    def _watch(self, over: threading.Event) -> None:
        """Until the outermost work is `over`, write the innermost one's line whenever nothing was for too long."""
        works = self._works
        first = works[0]
        while not over.wait(max(SILENCE / 10, self._due(first) - time.monotonic())):
            innermost = works[-1] if works else first
            if time.monotonic() >= self._due(first):
                self._write(innermost, f"  ({time.monotonic() - innermost.began:.0f} s)")

    def _due(self, first: _Work) -> float:
        """When the next line must come."""
        return self._heard + max(SILENCE, PATIENCE * (time.monotonic() - first.began))
