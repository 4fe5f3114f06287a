"""What a run says while it runs: metrics.jsonl, a progress bar, and trackers through their own libraries."""

from __future__ import annotations

import importlib
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from prospect.data import store
from prospect.errors import ConfigError, MissingExtra, ProspectError
from prospect.training.console import Console, quiet

Metrics = dict[str, Any]
Send = Callable[[str, Metrics, int], None]


def read_metrics(path: Path) -> list[Metrics]:
    """Every readable line of a metrics.jsonl; one that a kill cut short, or a disk has damaged, is left out, and so is
    one whose event or step is none."""
    lines = store.json_lines(path)[0]
    return [line for line in lines if isinstance(line.get("event"), str) and isinstance(line.get("step", 0), int)]


class RunLog:
    """Appends to metrics.jsonl and to the trackers, and prints for people; silent on ranks other than 0.

    An event of a step is logged once: a resumed run that comes by again adds no second line.
    """

    def __init__(
        self, folder: Path, *, rank: int = 0, track: tuple[str, ...] = (), config: Metrics | None = None
    ) -> None:
        self.folder, self.config = folder, config or {}
        self.path = folder / "metrics.jsonl"
        self.console = Console(stderr=True, quiet=rank != 0)
        self._bars = Bars(self.console)
        self.metrics: list[Metrics] = read_metrics(self.path)
        self._main = rank == 0
        self._trackers: dict[str, Send] = {}
        self._step = 0
        self._logged = set(map(_event_of, self.metrics))
        self.track(track)

    def track(self, names: tuple[str, ...]) -> None:
        """Log to these trackers as well from now on. Raises MissingExtra, ConfigError."""
        if self._main:
            self._trackers |= {name: _started(name, self.folder, self.config) for name in names}

    def rewind(self, step: int) -> None:
        """Forget what a lost part of the run had logged after `step`."""
        self.metrics, self._step = [m for m in self.metrics if _event_of(m)[1] <= step], step
        self._logged = set(map(_event_of, self.metrics))
        if self._main:
            store.write(self.path, "".join(json.dumps(m) + "\n" for m in self.metrics))

    def log(self, event: str, **values: Any) -> None:
        """One line of metrics.jsonl; numbers that are not finite are written as null."""
        self._step = max(self._step, int(values.get("step", 0)))
        line = {"event": event} | {k: None if _nonfinite(v) else v for k, v in values.items()}
        if self.has(line):
            return
        self.metrics.append(line)
        self._logged.add(_event_of(line))
        if self._main:
            self._append(json.dumps(line) + "\n")
        numbers = {k: v for k, v in line.items() if isinstance(v, int | float) and k != "step"}
        if numbers:
            self._send(event, numbers, int(values.get("step", 0)))

    def _append(self, line: str) -> None:
        """Add ASCII to the end of metrics.jsonl, which is created, and never through a link."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | store.NOFOLLOW
        with os.fdopen(os.open(self.path, flags, store.FILE), "ab") as file:
            file.write(line.encode("ascii"))

    def has(self, line: Metrics) -> bool:
        """Whether this event of this step (of warnings: this message) is logged already."""
        return _event_of(line) in self._logged

    def say(self, message: str, *, warning: bool = False) -> None:
        """A line for people; a warning is kept in metrics.jsonl, for the report, too."""
        text = escape(message)
        if warning or not quiet():
            self.console.print(f"[yellow]warning:[/] {text}" if warning else text, highlight=False, soft_wrap=True)
        self._bars.heard()
        if warning:
            self.log("warning", step=self._step, message=message)

    def bar(self, title: str, total: int | None = None, start: int = 0) -> AbstractContextManager[Update]:
        """A progress bar; the yielded function takes what is done and a text of figures."""
        return self._bars.bar(title, total, start)

    def close(self) -> None:
        """Tell the trackers that the run has ended."""
        self._send("end", {}, 0)

    def _send(self, event: str, numbers: Metrics, step: int) -> None:
        """To every tracker. One that fails, its server gone say, is left out from then on: the run is worth more."""
        for name, send in list(self._trackers.items()):
            try:
                send(event, numbers, step)
            except Exception as error:
                del self._trackers[name]
                self.say(f"--track {name} stopped working and is left out from here on: {error}", warning=True)


def _event_of(line: Metrics) -> tuple[str, int, str]:
    """What a line is about: event, step and message."""
    step = line.get("step", 0)
    return str(line.get("event")), step if isinstance(step, int) else 0, str(line.get("message", ""))


def _nonfinite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _library(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingExtra(module.split(".")[0], extra, f"--track {extra}") from None


def _started(name: str, folder: Path, config: Metrics) -> Send:
    """A tracker that is ready. Raises MissingExtra, or ConfigError with its library's own words."""
    try:
        return tracker(name, folder, config)
    except ProspectError:
        raise
    except Exception as error:  # no login, no network, no room: each library has its own kinds
        raise ConfigError(f"--track {name} cannot start: {error}") from error


def tracker(name: str, folder: Path, config: Metrics) -> Send:
    """A function (event, numbers, step) that sends to one experiment tracker; the event "end" closes it."""
    if name == "tensorboard":
        writer = _library("torch.utils.tensorboard", name).SummaryWriter(str(folder / "tensorboard"))

        def to_tensorboard(event: str, numbers: Metrics, step: int) -> None:
            for key, value in numbers.items():
                writer.add_scalar(f"{event}/{key}", value, step)
            if event == "end":
                writer.close()

        return to_tensorboard
    library = _library(name, name)
    if name == "mlflow":
        library.start_run(run_name=folder.name)
        library.log_params({k: str(v)[:500] for k, v in config.items()})

        def to_mlflow(event: str, numbers: Metrics, step: int) -> None:
            library.log_metrics({f"{event}/{k}": v for k, v in numbers.items()}, step=step)
            if event == "end":
                library.end_run()

        return to_mlflow
    run = library.init(project="prospect", name=folder.name, config=config)

    def to_run(event: str, numbers: Metrics, step: int) -> None:
        if event == "end":
            run.finish()
        else:
            run.log({f"{event}/{k}": v for k, v in numbers.items()}, step=step)

    return to_run


def progress_line(metrics: Metrics) -> str:
    """The figures beside the progress bar."""
    shown = {
        "loss": "loss {:.4f}",
        "margin": "margin {:+.3f}",
        "z0": "z0 {:.3f}",
        "tokens_per_second": "{:,.0f} tokens/s",
        "utilisation": "{:.0%} of peak",
    }
    return "  ".join(text.format(metrics[name]) for name, text in shown.items() if name in metrics)


# ---- progress -------------------------------------------------------------------------------------------------------

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
    last_line: int
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
            if total and (done - work.last_line) * 10 >= total:  # about ten lines, however long it takes
                self._write(work)

        try:
            yield update
        finally:
            over.set()
            self._works.remove(work)

    def _write(self, work: _Work, more: str = "") -> None:
        with self._lock:
            work.last_line = work.done
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
