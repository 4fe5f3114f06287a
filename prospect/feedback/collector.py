"""The garbage collector, told to wait while many objects are made of which none is garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def waiting() -> Iterator[None]:
    """No collection in this block, or in the function that this decorates.

    Rows are many small objects without cycles, and while they are made a collection walks over all of them, and over
    everything that torch and transformers have imported, to find nothing.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
