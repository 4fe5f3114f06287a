"""Nobody is left in silence: bars within bars where somebody watches, lines where nobody does."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from prospect.training import runlog
from prospect.training.runlog import Bars, RunLog


def written(*, quiet: bool = False) -> tuple[Bars, io.StringIO]:
    file = io.StringIO()
    return Bars(Console(file=file, quiet=quiet)), file


def until(holds: Callable[[], bool]) -> None:
    """Wait for a thread, however slow the machine."""
    for _ in range(1000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("waited for ten seconds")


def test_work_that_goes_on_is_heard_of_though_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runlog, "SILENCE", 0.01)
    bars, file = written()
    with bars.bar("train", 100) as update:
        update(3, "loss 0.5")
        until(lambda: file.getvalue().count("train 3/100  loss 0.5  (") > 1)
        with bars.bar("evaluation", 7):
            until(lambda: "evaluation 0/7  (0 s)" in file.getvalue())
            before = file.getvalue().count("train")
            until(lambda: file.getvalue().count("evaluation") > 3)
            assert file.getvalue().count("train") == before  # the innermost speaks
        until(lambda: file.getvalue().count("train") > before)
    with bars.bar("loading the model"):
        until(lambda: "loading the model  (0 s)" in file.getvalue())


def test_quick_work_says_nothing_and_a_day_says_little(monkeypatch: pytest.MonkeyPatch) -> None:
    bars, file = written()
    with bars.bar("loading the model"):
        pass
    assert file.getvalue() == ""
    clock = [0.0]
    monkeypatch.setattr("prospect.training.runlog.time.monotonic", lambda: clock[0])
    work = runlog._Work("train", 10**6, 0, 0, began=0.0)
    lines = 0
    while clock[0] < 86_400:  # the waits that _watch makes, one line after each
        clock[0] = bars._heard = bars._due(work) if lines else runlog.SILENCE
        lines += 1
    assert clock[0] >= 86_400
    assert lines < 120


def test_the_thread_ends_with_the_work_and_a_quiet_console_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runlog, "SILENCE", 0.01)
    threads: list[str] = []
    monkeypatch.setattr("prospect.training.runlog.threading.Thread.start", lambda self: threads.append(self.name))
    for quiet, started in ((True, 0), (False, 1)):
        bars, _ = written(quiet=quiet)
        with bars.bar("train", 10), bars.bar("evaluation", 10):
            assert len(threads) == started


def test_an_error_within_closes_every_bar() -> None:
    for console in (Console(file=io.StringIO()), Console(file=io.StringIO(), force_terminal=True)):
        bars = Bars(console)
        for _ in range(2):
            with pytest.raises(KeyError), bars.bar("train", 10), bars.bar("evaluation", 10):
                raise KeyError
        assert bars._works == [] and bars._progress is None


def test_a_bar_within_a_bar_is_drawn_below_it() -> None:
    file = io.StringIO()
    bars = Bars(Console(file=file, force_terminal=True, width=120))
    with bars.bar("train", 10) as train:
        train(4, "loss 0.5")
        with bars.bar("evaluation", 7) as evaluation:
            evaluation(7)
            assert bars._progress is not None
            bars._progress.refresh()
        train(10)
    shown = file.getvalue()
    assert "evaluation" in shown and "7/7" in shown and "loss 0.5" in shown
    assert shown.rfind("10/10") > shown.rfind("7/7")


def test_what_is_said_counts_as_heard(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log._bars._heard = -1e9
    log.say("mind the gap")
    assert log._bars._heard > 0
