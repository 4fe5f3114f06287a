"""A time limit for foreign code, in any thread."""

from __future__ import annotations

import threading
import time

import pytest

from prospect.data.template import within


def spin() -> None:
    while True:
        try:
            while True:
                pass
        except Exception:  # no such handler swallows the limit
            continue


def test_code_that_ends_returns_its_value_and_raises_its_errors() -> None:
    assert within(5, lambda: 4) == 4
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0)


def test_code_that_does_not_end_is_ended() -> None:
    for _ in range(3):
        with pytest.raises(TimeoutError, match=r"within 0\.1 s"):
            within(0.1, spin)
    assert within(5, lambda: sum(range(1000))) == 499500


def test_in_other_threads_each_has_its_own_limit() -> None:
    ended: list[str] = []

    def late() -> None:
        with pytest.raises(TimeoutError):
            within(0.1, spin)
        ended.append("late")

    def patient() -> None:
        within(60, lambda: time.sleep(0.5))
        ended.append("patient")

    threads = [threading.Thread(target=target) for target in (late, patient, late)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(ended) == ["late", "late", "patient"]


def test_a_result_that_comes_too_late_is_no_result_and_nothing_is_raised_later() -> None:
    with pytest.raises(TimeoutError):
        within(0.05, lambda: time.sleep(0.4))
    for _ in range(10):
        time.sleep(0.02)
