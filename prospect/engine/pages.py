"""Memory that is freed stays with the process, on Linux with glibc.

By default every large tensor is given back to the system when it dies, and the next one of its size is zeroed page by
page again: a tenth of a training step on a CPU, paid for nothing, as the next step needs the same sizes.
"""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Names of glibc's parameters, from its malloc.h."""
LARGE = 1 << 30
"""Bytes up to which freed memory is kept for the next one to ask."""


def keep_freed() -> bool:
    """Ask the C library for it; whether it understood. Setting it again changes nothing."""
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and all(mallopt(name, LARGE) == 1 for name in (MMAP_THRESHOLD, TRIM_THRESHOLD))
