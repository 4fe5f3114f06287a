"""How many tokens a micro-batch may have on CUDA: as many as memory takes, by two measurements on the run's own rows.

bytes(tokens) = fixed + slope * tokens <= SHARE * (what is free - what the optimizer will keep)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from prospect.data.dataset import Dataset
from prospect.engine.packing import Branches
from prospect.training import ranks
from prospect.training.batch import LEARNT
from prospect.training.step import Job

CPU_TOKENS = 4096
"""Default token budget per micro-batch on a CPU: beyond this size more tokens at once are no faster."""
KNEE = 16384
"""The same on CUDA, and the most that is measured for."""
SHARE = 0.85
"""Of the free memory: the rest is for what fragments, and for rows that take more than the two measured ones."""
SMALL = 2048
"""Tokens of the smaller measurement; the larger has twice as many."""
STATE = {"adamw": 8, "rmsprop": 4}
"""Bytes that an optimizer keeps per trainable parameter."""

Measurement = tuple[int, int]
"""Tokens, and the bytes that forward and backward of them take at most."""


class Meter(Protocol):
    """What measures memory, in bytes."""

    def peak(self, work: Callable[[], None]) -> int:
        """The most that `work` has beyond what was there before. Passes on its OutOfMemoryError."""

    def free(self) -> int:
        """What can still be had."""


class CudaMeter:
    """PyTorch's own count of a CUDA device's memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def peak(self, work: Callable[[], None]) -> int:
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        work()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before

    def free(self) -> int:
        free, _ = torch.cuda.mem_get_info(self.device)
        return free + torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)


def tokens_that_fit(small: Measurement, large: Measurement, *, room: float, longest: int) -> int:
    """The most tokens whose bytes fit into `room`, from `longest` (the longest row, which must be computed in any case)
    to KNEE."""
    (few, less), (many, more) = small, large
    slope = (more - less) / (many - few) if many > few else more / many
    if slope <= 0:
        return max(longest, KNEE)
    return max(longest, min(KNEE, int(few + (room - less) / slope)))


def settle_budget(job: Job, meter: Meter | None = None) -> bool:
    """On CUDA, where the user named no token budget: measure it, set it and say so. Whether that was done.

    The job must be ready to train, its adapter and value head in place.
    """
    if meter is None and job.policy.device.type == "cuda":
        meter = CudaMeter(job.policy.device)
    if meter is None or job.config.token_budget is not None or not job.policy.trainable():
        return False
    job.token_budget = min(ranks.gather(_budget(job, meter)))
    job.log.say(f"micro-batches of up to {job.token_budget:,} tokens, by what memory takes")
    return True


def _budget(job: Job, meter: Meter) -> int:
    """The token budget of this rank."""
    trees = _longest_first(job.dataset)
    longest = _tokens(trees[:1])
    small = _first(trees, SMALL)
    large = _first(trees, 2 * _tokens(small))

    def backward(part: list[Branches]) -> None:
        completions = job.compute(part)
        columns = completions.columns((*LEARNT, "token_sum_p2")).values()
        torch.stack([column.sum() for column in columns]).sum().backward()

    def measure(part: list[Branches]) -> Measurement:
        return _tokens(part), meter.peak(lambda: backward(part))

    try:
        measure(small)  # makes what is made once: gradients, workspaces, tuned kernels
        measurements = measure(small), measure(large)
        state = STATE[job.config.optimizer] * job.policy.trainable_parameters
        return tokens_that_fit(*measurements, room=SHARE * (meter.free() - state), longest=longest)
    except torch.cuda.OutOfMemoryError:
        return longest
    finally:
        for _, p in job.policy.trainable():
            p.grad = None


def _longest_first(dataset: Dataset) -> list[Branches]:
    """Every row alone with its prompt."""
    trees = [
        Branches(dataset.trees[row.tree].prompt, tuple(dataset.completion(row, k) for k in range(len(row.branches))))
        for row in dataset.examples
    ]
    return sorted(trees, key=lambda tree: -_tokens([tree]))


def _first(trees: list[Branches], tokens: int) -> list[Branches]:
    """The longest trees, again from the start where they do not suffice, until they have so many tokens."""
    part: list[Branches] = []
    count = 0
    while count < tokens:
        part.append(trees[len(part) % len(trees)])
        count += _tokens(part[-1:])
    return part


def _tokens(trees: list[Branches]) -> int:
    """As `batch.cut_step` counts them."""
    return sum(len(tree.prompt) + sum(map(len, tree.completions)) for tree in trees)
