"""Running out of memory: how it is recognised among all that PyTorch raises, and how to start again with less."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from prospect.errors import ModelError

Result = TypeVar("Result")

OTHER_WORDS = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")
"""What those of PyTorch's plain RuntimeErrors say that mean it, too."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device, or the host, has no memory left."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or (isinstance(error, RuntimeError) and any(words in str(error) for words in OTHER_WORDS))


def within_memory(work: Callable[[], Result]) -> Result | None:
    """The result of `work`, None where memory ran out."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    return None


def release(device: torch.device) -> None:
    """Give back what a pass that ran out of memory has left: large batches leave blocks that small ones may not
    fill."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def must_fit(what: str) -> Iterator[None]:
    """Raises ModelError where memory runs out within it, saying that `what` does not fit."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(
            f"{what} does not fit into memory. Choose --precision bf16, a smaller model, --device cpu, or wait until "
            "others have left the device"
        ) from error
