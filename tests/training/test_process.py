"""Freed memory stays with the process, and what is built for shapes does not pile up."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from prospect.training import process

PROGRAM = """
import sys, resource, torch
from prospect.training.process import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "kept" else None)
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


SHAPES = """
import sys, torch
from prospect.training.process import limit_shapes
if sys.argv[1] == "limited":
    limit_shapes()
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
weight = torch.randn(64, 64).bfloat16()
for rows in range(1, 1200):
    torch.randn(rows, 64).bfloat16() @ weight
    if rows == 100:
        before = resident()
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's count of a process's memory")
def test_products_of_ever_new_shapes_take_no_more_memory() -> None:
    # Other tests of this process may have set the limits already.
    clean = {name: value for name, value in os.environ.items() if name not in process.SHAPES}
    default, limited = (
        int(subprocess.check_output([sys.executable, "-c", SHAPES, how], text=True, env=clean))
        for how in ("default", "limited")
    )
    if default < 30 << 20:
        pytest.skip("products keep nothing on this processor")
    assert limited * 5 < default
