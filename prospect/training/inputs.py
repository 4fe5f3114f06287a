"""What the engine found for some rows, and every input of a loss that follows from it.

The engine's findings are per token. A row's sums follow from them, so a whole step is told by its tokens:

    token_logp, token_reference  ->  token_log_ratio  ->  log_ratio, logp, reference_logp, length
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from prospect.data.dataset import Dataset
from prospect.engine.forward import forward, forward_more
from prospect.engine.packing import Branches, Ids, TokenLogps
from prospect.engine.policy import Policy
from prospect.engine.transfer import move, take
from prospect.losses.numerics import segment_sum
from prospect.training.batch import Micro


class Reference(Protocol):
    """The reference table, or a reference that moves."""

    def scores(self, trees: Sequence[Branches], like: Tensor) -> Tensor:
        """The reference's token log-probs (T,) in nats of all completions of the trees, in their order."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """The completions of some rows, on one side of their pairs: all (T,), completion k being
    `offsets[k]:offsets[k + 1]`; None is what nobody asked for. The offsets stay on the CPU, where rows are picked."""

    token_logp: Tensor
    offsets: Tensor  # (N + 1,) int64, on the CPU
    token_reference: Tensor | None = None
    token_sum_p2: Tensor | None = None
    value: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor], offsets: Tensor) -> Tokens:
        """With every column of tokens changed, and these offsets."""

        def changed(column: Tensor | None) -> Tensor | None:
            return None if column is None else change(column)

        rest = (changed(column) for column in (self.token_reference, self.token_sum_p2, self.value))
        return Tokens(change(self.token_logp), offsets, *rest)

    def take(self, completions: Sequence[int]) -> Tokens:
        """Some completions, in the order given."""
        offsets = self.offsets.tolist()
        spans = [torch.arange(offsets[k], offsets[k + 1]) for k in completions]
        lengths = torch.tensor([len(span) for span in spans], dtype=torch.int64)
        index = move(torch.cat([lengths[:0], *spans]), self.token_logp.device)
        return self.each(lambda column: column[index], _starts(lengths))

    def read(self, name: str) -> Tensor:
        """An input of a loss by its name, on the device: per token (T,), or per completion (N,)."""
        if name == "offsets":
            return move(self.offsets, self.token_logp.device)
        if name == "length":
            return move(self.offsets.diff(), self.token_logp.device)
        if name == "logp":
            return segment_sum(self.token_logp, self.read("offsets"))
        if name == "reference_logp":
            return segment_sum(_there(self.token_reference), self.read("offsets"))
        if name == "token_log_ratio":
            return self.token_logp - _there(self.token_reference)
        if name == "log_ratio":
            return segment_sum(self.read("token_log_ratio"), self.read("offsets"))
        found: Tensor | None = getattr(self, name)
        return _there(found)


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows ready for a loss. `sides` has one entry, or chosen and rejected; `z0` is a scalar or (N,); `score` (N,) is
    an answer's score, or a pair's difference of scores. The thumbs stay on the CPU, where rows are picked."""

    sides: tuple[Tokens, ...]
    weight: Tensor
    thumbs: tuple[bool, ...]
    score: Tensor | None = None
    z0: Tensor | None = None

    def __len__(self) -> int:
        return len(self.weight)

    @cached_property
    def desirable(self) -> Tensor:
        """The thumbs as a mask (N,), on the device, copied there once."""
        return move(torch.tensor(self.thumbs, dtype=torch.bool), self.weight.device)

    def take(self, rows: Sequence[int]) -> Batch:
        """Some rows, in the order given."""
        return Batch(
            tuple(side.take(rows) for side in self.sides),
            take(self.weight, rows),
            tuple(self.thumbs[k] for k in rows),
            None if self.score is None else take(self.score, rows),
            take(self.z0, rows) if self.z0 is not None and self.z0.ndim else self.z0,
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device, or on the CPU, which waits for it; before it has a z0."""
        assert self.z0 is None, "z0 is known on every rank"
        sides = tuple(side.each(lambda column: move(column, device), side.offsets) for side in self.sides)
        score = None if self.score is None else move(self.score, device)
        return Batch(sides, move(self.weight, device), self.thumbs, score)


def compute(
    policy: Policy, micro: Micro, reference: Reference | None, *, sum_p2: bool = False, value: bool = False
) -> Tokens:
    """Run the engine on a micro-batch, completions in the order of its trees, and look up its reference."""
    found = forward(policy, micro.trees, want_sum_p2=sum_p2, want_hidden=value)
    return _tokens(policy, micro, found, reference)


def compute_with(
    policy: Policy,
    micro: Micro,
    more: Micro,
    where: Sequence[int],
    reference: Reference | None,
    *,
    sum_p2: bool = False,
    value: bool = False,
) -> tuple[Tokens, Tokens]:
    """The same on a micro-batch that runs on trees and, without gradient, on further completions of its prompts: tree k
    of `more` has the prompt of tree `where[k]`, which is not computed again."""
    completions: list[tuple[Ids, ...]] = [()] * len(micro.trees)
    for k, tree in zip(where, more.trees, strict=False):  # without rows it has a tree that stands for none
        completions[k] = tree.completions
    # Around both: the second finds most of the weights that the first has cast for its backward. Not around `_tokens`:
    # a live reference puts other weights into the same parameters, which is all that autocast looks at.
    with policy.autocast():
        found = forward(policy, micro.trees, want_sum_p2=sum_p2, want_hidden=value, want_prompts=True)
        assert found.prompts is not None, "the caller has asked `on_trees`"
        with torch.no_grad():
            further = forward_more(policy, found.prompts, completions) if where else forward(policy, more.trees)
    found.prompts.memory.layers.clear()
    with torch.no_grad():
        beside = _tokens(policy, more, further, reference)
    return _tokens(policy, micro, found, reference), beside


def _tokens(policy: Policy, micro: Micro, found: TokenLogps, reference: Reference | None) -> Tokens:
    logp = found.token_logp
    return Tokens(
        logp,
        found.offsets,
        _scores(reference, micro, logp),
        found.token_sum_p2,
        policy.values(found.hidden).to(logp.dtype) if found.hidden is not None else None,
    )


def _scores(reference: Reference | None, micro: Micro, like: Tensor) -> Tensor | None:
    if reference is None:
        return None
    # An idle rank's one token is in no table.
    return reference.scores(micro.trees, like.detach()) if micro.rows else torch.zeros_like(like)


def batch_of(dataset: Dataset, micro: Micro, found: Tokens, z0: Tensor | None = None) -> Batch:
    """The rows of a micro-batch, of which there is at least one, as a loss reads them. `z0` is theirs."""
    rows = [dataset.examples[i] for i in micro.rows]
    device, dtype = found.token_logp.device, found.token_logp.dtype
    scores = [row.score for row in rows]
    return Batch(
        tuple(found.take([where[side] for where in micro.where]) for side in range(len(micro.where[0]))),
        move(torch.tensor([row.weight for row in rows], dtype=dtype), device),
        tuple(bool(row.desirable) for row in rows),
        None if None in scores else move(torch.tensor(scores, dtype=dtype), device),
        None if z0 is None else z0.to(device, dtype),
    )


def join(parts: Sequence[Tokens]) -> Tokens:
    """The completions of all parts, at least one of which there is, one behind the other."""

    def joined(columns: list[Tensor | None]) -> Tensor | None:
        there = [column for column in columns if column is not None]
        return torch.cat(there) if there else None

    return Tokens(
        torch.cat([part.token_logp for part in parts]),
        _starts(torch.cat([part.offsets.diff() for part in parts])),
        joined([part.token_reference for part in parts]),
        joined([part.token_sum_p2 for part in parts]),
        joined([part.value for part in parts]),
    )


def _starts(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def _there(value: Tensor | None) -> Tensor:
    assert value is not None, "what a loss reads was computed for it"
    return value
