"""Several processes, one result: the few collectives the loop needs, and one end. With one process each is the
identity."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from prospect.engine.device import within_memory
from prospect.errors import ConfigError, ProspectError, RunError

Shared = TypeVar("Shared")

POLL = 1.0
"""Seconds between two looks at whether another rank has failed."""
PATIENCE = 20.0
"""Seconds that a rank has to notice by itself: what waits for a rank that is gone may wait for ever."""

LAST_WORD = 30.0
"""Seconds that the rank with the store stays for the others to hear why it ends."""

# torch ships no types of its stores.
_torch: Any = dist
_store: Any = None
_runs = 0


@contextmanager
def together() -> Iterator[None]:
    """Within, an error of one rank ends them all, with its reason, wherever they are.

    The rank that fails leaves word in the store through which the ranks have met. The others find it there when their
    next collective breaks; one that waits on, as backends do that notice no lost peer, is ended by its own watch.
    """
    global _runs
    if _meeting() is None:
        yield
        return
    _runs += 1
    word, number, over = f"prospect/{_runs}/failed", os.environ["RANK"], threading.Event()
    watch = threading.Thread(target=_watch, args=(word, over), daemon=True)
    watch.start()
    try:
        yield
    except BaseException as error:
        broken = isinstance(error, RuntimeError) and not isinstance(error, ProspectError)
        deadline = time.monotonic() + 2 * POLL
        if broken and (reason := _reason(word, lambda: time.monotonic() > deadline)):
            raise RunError(reason) from error
        lost = broken and ("gloo" in str(error) or isinstance(error, dist.DistError))
        what = "has lost another rank, which left no word" if lost else "has failed"
        reason = f"rank {number} {what}: {error or type(error).__name__}"
        _leave_word(word, reason)
        if lost:
            raise RunError(reason) from error
        raise
    finally:
        over.set()
        watch.join()


def _meeting() -> Any:
    """The store that the environment of torchrun describes; None with one process, or a group that others made."""
    global _store
    if _store is None and int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        _store, _, _ = next(_torch.rendezvous("env://"))
    return _store


def _client() -> Any:
    """A connection of one's own: the one of `_meeting` is taken by whoever waits."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return _torch.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5 * POLL))


def _reason(word: str, stop: Callable[[], bool]) -> str:
    """What another rank has left word of; an empty string where `stop()` says so before one has."""
    try:
        store = _client()
        while not store.check([word]):
            if stop():
                return ""
            time.sleep(POLL / 10)
        reason = store.get(word).decode()
        store.set(f"{word}/{os.environ['RANK']}", "heard")
        return str(reason)
    except RuntimeError:
        return "the first rank has ended and left no word"


def _leave_word(word: str, reason: str) -> None:
    """The first one to fail says why. With the store in this process, wait until the others have heard it."""
    with suppress(RuntimeError):
        store = _client()
        store.compare_set(word, "", reason)
        store.set(f"{word}/{os.environ['RANK']}", "knows")
        if os.environ["RANK"] == "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            others = [f"{word}/{k}" for k in range(1, int(os.environ["WORLD_SIZE"]))]
            store.wait(others, timedelta(seconds=LAST_WORD))


def _watch(word: str, over: threading.Event) -> None:
    """End this process where another has failed and this one does not notice."""
    reason = _reason(word, lambda: over.wait(POLL))
    if reason and not over.wait(PATIENCE):
        with suppress(OSError):  # nobody hears it
            print(f"error: {reason}", file=sys.stderr, flush=True)
        os._exit(1)


def device(name: str) -> str:
    """What `--device NAME` is in this process: with several GPUs, torchrun's LOCAL_RANK says which."""
    on_cuda = name.startswith("cuda") or (name == "auto" and torch.cuda.is_available())
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return f"cuda:{os.environ['LOCAL_RANK']}" if several and on_cuda else name


def start(name: str) -> None:
    """Join the group that torchrun describes in the environment, if it does and nobody has joined yet, for work on the
    `device(name)`."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return
    on_cuda = device(name).startswith("cuda")
    if on_cuda:
        gpus, local = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
        if local >= gpus:
            raise ConfigError(
                f"process {local + 1} on this machine needs a GPU of its own, and there are {gpus}: start {gpus} with "
                f"torchrun --nproc-per-node={gpus}, or train on the processor with --device cpu"
            )
        torch.cuda.set_device(device(name))
    store = _meeting()
    if not dist.is_initialized():
        assert store is not None, "there are several processes, and nobody has made a group"
        number, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        group = _torch.PrefixStore("default_pg", store)
        dist.init_process_group("nccl" if on_cuda else "gloo", store=group, rank=number, world_size=size)


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


def fail_together(work: Callable[[], Shared], device: torch.device) -> Shared:
    """The result of `work`. Where memory runs out on one rank, raises OutOfMemoryError on all."""
    result = within_memory(lambda: (work(),))
    if any_rank(result is None, device) or result is None:
        raise torch.OutOfMemoryError("out of memory on a rank")
    return result[0]


def gather(value: Shared) -> list[Shared]:
    """Every rank's `value`, in the order of the ranks, on every rank. For small things: it travels pickled."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


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
