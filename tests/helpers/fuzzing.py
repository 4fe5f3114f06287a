"""How long to fuzz: a few fixed examples in the suite, fresh ones without end under `make fuzz` (which sets FUZZ)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings

from prospect.errors import ProspectError

LONG = bool(os.environ.get("FUZZ"))


def fuzz(examples: int) -> settings:
    """So many examples in the suite, ten times as many and others each time under `make fuzz`."""
    return settings(
        max_examples=examples * 10 if LONG else examples,
        derandomize=not LONG,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def in_words(work: Callable[[], Any]) -> Any:
    """The result of `work`, None where it ended in an error that is meant for the user; all others are faults."""
    try:
        return work()
    except ProspectError as error:
        if not str(error).strip():
            raise AssertionError("an error without a word") from error
        return None


DEEP, LONG_NUMBER = "[" * 100_000, "9" * 5000
BROKEN = ["", " ", "\x00", "{", "{}", "[]", "null", "3", '"text"', DEEP, LONG_NUMBER, f'{{"a": {LONG_NUMBER}}}',
          '{"a": ' * 20_000, "\udcff", "\ufeff{}"]  # fmt: skip
"""What files that should hold a JSON object have been seen to hold."""


def as_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
