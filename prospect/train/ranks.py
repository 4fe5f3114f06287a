"""Several processes, one result: the few collectives the loop needs. With one process each is the identity."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Shared = TypeVar("Shared")


def start(device: str) -> str:
    """Join the group that torchrun describes in the environment, if it does and nobody has joined yet.

    Returns the device of this process: with several GPUs, torchrun's LOCAL_RANK says which.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return device
    on_cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_cuda:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if on_cuda else "gloo")
    return device


def rank() -> int:
    """This process's number, 0 where there is only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for all ranks."""
    if world() > 1:
        dist.barrier()


def total(values: Tensor) -> Tensor:
    """The sum of `values` over all ranks (in place)."""
    if world() > 1:
        dist.all_reduce(values)
    return values


def any_rank(flag: bool, device: torch.device) -> bool:
    """True on every rank where it is true on one."""
    return bool(total(torch.tensor(float(flag), device=device))) if world() > 1 else flag


def gather(value: Shared) -> list[Shared]:
    """Every rank's `value`, in the order of the ranks, on every rank. For small things: it travels pickled."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, value)
    return found


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Sum every gradient over the ranks, once, after the last micro-batch: one flat message per dtype."""
    if world() == 1:
        return
    every = list(parameters)
    # What no rank has used gets no gradient anywhere, as with one process: the optimizer leaves it alone.
    used = total(torch.tensor([float(p.grad is not None) for p in every], device=every[0].device))
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for p, somewhere in zip(every, used.tolist(), strict=True):
        if not somewhere:
            continue
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        by_dtype.setdefault(p.grad.dtype, []).append(p.grad)
    for grads in by_dtype.values():
        flat = total(torch.cat([g.reshape(-1) for g in grads]))
        for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            g.copy_(part.view_as(g))
