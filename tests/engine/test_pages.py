"""Freed memory stays with the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys, resource, torch
from prospect.engine.pages import keep_freed
print(keep_freed() if sys.argv[1] == "kept" else None)
def fill():
    for _ in range(20):
        torch.ones(1 << 24)
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a parameter of Linux's C library")
def test_the_system_zeroes_no_page_twice() -> None:
    """64 MiB tensors, one after the other: by default each costs its page faults again."""
    told, faults = zip(
        *(
            subprocess.run(
                [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
            ).stdout.split()
            for how in ("default", "kept")
        ),
        strict=True,
    )
    if told[1] == "False":
        pytest.skip("the C library has no mallopt")
    assert int(faults[1]) * 10 < int(faults[0])
