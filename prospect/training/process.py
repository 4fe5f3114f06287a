"""What the command line and `prospect.train` set in their process before anything is computed: memory on a CPU.

Freed memory is kept. By default Linux's C library gives every large tensor back to the system when it dies, and the
next one of its size is zeroed page by page again: a tenth of a training step, paid for nothing.

Few shapes are kept. PyTorch's products in bfloat16 and oneDNN below them keep what they have built for the last 1024
shapes each, half a megabyte for one. No two steps have the same number of tokens: it adds up to hundreds of megabytes,
in pieces that lie between everything else, where the next step's large tensors no longer fit.
"""

from __future__ import annotations

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Names of glibc's parameters, from its malloc.h."""
LARGE = 1 << 30
"""Bytes up to which freed memory is kept for the next one to ask."""

SHAPES = {"LRU_CACHE_CAPACITY": 8, "ONEDNN_PRIMITIVE_CACHE_CAPACITY": 48}
"""How many to keep, by variables of the environment that are read at the first product: about as many as a layer has,
which every layer has again. PyTorch's cache holds nothing that oneDNN's does not; with 0 it crashes."""


def settle() -> None:
    """Set both, to be called before the first product. What the user has set stays; a second call changes nothing."""
    limit_shapes()
    keep_freed_memory()


def limit_shapes() -> None:
    """Keep what is built for as many shapes as a layer has."""
    for name, count in SHAPES.items():
        os.environ.setdefault(name, str(count))


def keep_freed_memory() -> bool:
    """Ask the C library for it; whether it understood."""
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and all(mallopt(name, LARGE) == 1 for name in (MMAP_THRESHOLD, TRIM_THRESHOLD))
