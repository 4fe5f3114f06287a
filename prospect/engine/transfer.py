"""From the memory of the host to the device: pinned and without waiting on CUDA, nothing special on the CPU.

What moves with every micro-batch goes through here: a plain copy would make the host wait for all that the device has
still to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


def move(tensor: Tensor, device: torch.device | str) -> Tensor:
    """`tensor` on `device`; the host goes on at once, and what it launches there later finds the copy complete."""
    if not _pins(tensor, device):
        return tensor.to(device)
    return _pinned(tensor).to(device, non_blocking=True)


def move_all(arrays: Sequence[Array], device: torch.device | str, dtype: type[np.integer[Any]]) -> list[Tensor]:
    """Arrays of any shapes as tensors of `dtype`, to CUDA all in one copy."""
    found = [torch.from_numpy(array.astype(dtype, copy=False)) for array in arrays]
    if not found or not _pins(found[0], device):
        return [tensor.to(device) for tensor in found]
    parts = move(torch.cat([tensor.flatten() for tensor in found]), device).split([t.numel() for t in found])
    return [part.view(tensor.shape) for part, tensor in zip(parts, found, strict=True)]


def take(values: Tensor, places: Sequence[int]) -> Tensor:
    """`values[places]`: a list as an index would be copied to the device while the host waits."""
    return values[move(torch.tensor(places, dtype=torch.int64), values.device)]


def _pins(tensor: Tensor, device: torch.device | str) -> bool:
    return tensor.device.type == "cpu" and torch.device(device).type == "cuda"


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory()
