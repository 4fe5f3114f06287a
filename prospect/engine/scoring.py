"""The log-probs of many answers without gradient, batch by batch: what the reference table and the evaluation ask."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from prospect.engine.checks import nan_source
from prospect.engine.forward import forward
from prospect.engine.memory import release, within_memory
from prospect.engine.packing import Branches, Ids
from prospect.engine.policy import Policy
from prospect.errors import ModelError, RunError

Query = tuple[Ids, Ids]
"""Prompt ids and completion ids."""
TokenLogps = npt.NDArray[np.floating]


def score(
    policy: Policy, queries: Sequence[Query], *, token_budget: int, stop: Callable[[], bool] = lambda: False
) -> Iterator[list[tuple[int, TokenLogps]]]:
    """Batch by batch, the numbers of some queries with their token log-probs (c,) in nats; `stop()` is asked before
    each batch.

    Completions of one prompt share its computation. Where memory runs out, what is left goes on in batches half as
    large. Raises RunError where one answer alone does not fit, ModelError where a log-prob is not finite.
    """
    trees: dict[bytes, list[int]] = {}
    for number, (prompt, _) in enumerate(queries):
        trees.setdefault(prompt.tobytes(), []).append(number)
    pending = deque(_batches(queries, list(trees.values()), token_budget))
    while pending and not stop():
        batch = pending.popleft()
        token_logp = within_memory(partial(_token_logp, policy, queries, batch))
        if token_logp is None:
            release(policy.device)
            if sum(map(len, batch)) == 1:
                prompt, completion = queries[batch[0][0]]
                raise RunError(
                    f"out of memory for one answer of {len(prompt) + len(completion)} tokens alone. Choose a shorter "
                    "--max-length, --precision bf16, or a smaller model"
                )
            token_budget = min(token_budget, sum(_cost(queries, tree) for tree in batch)) // 2
            pending = deque(_batches(queries, [tree for part in (batch, *pending) for tree in part], token_budget))
            continue
        numbers = [number for tree in batch for number in tree]
        ends = np.cumsum([len(queries[number][1]) for number in numbers])
        if not np.isfinite(token_logp).all():
            place = int(np.flatnonzero(~np.isfinite(token_logp))[0])
            raise ModelError(
                _not_finite(policy, queries[numbers[int((ends <= place).sum())]], float(token_logp[place]))
            )
        yield list(zip(numbers, np.split(token_logp, ends[:-1]), strict=True))


@torch.no_grad()
def _token_logp(policy: Policy, queries: Sequence[Query], batch: list[list[int]]) -> TokenLogps:
    """Of all answers of a batch, one behind the other."""
    trees = [Branches(queries[tree[0]][0], tuple(queries[number][1] for number in tree)) for tree in batch]
    values: TokenLogps = forward(policy, trees).token_logp.cpu().numpy()
    return values


def _not_finite(policy: Policy, query: Query, value: float) -> str:
    prompt, completion = query
    text = policy.tokenizer.decode([*prompt, *completion]) if policy.tokenizer is not None else "its tokens"
    return (
        f"{policy.name or policy.architecture} gives a token the log-prob {value} in {str(text)[:80]!r}: "
        f"{nan_source(policy)}. Take an intact copy of the model, or leave that row out"
    )


def _cost(queries: Sequence[Query], tree: list[int]) -> int:
    """Tokens of a prompt with some of its completions."""
    return len(queries[tree[0]][0]) + sum(len(queries[number][1]) for number in tree)


def _batches(queries: Sequence[Query], trees: list[list[int]], budget: int) -> Iterator[list[list[int]]]:
    """Trees in order of length, as many at a time as the budget holds; a prompt's completions stay together as far as
    they fit."""
    parts: list[tuple[int, list[int]]] = []
    for tree in trees:
        part: list[int] = []
        cost = len(queries[tree[0]][0])
        for number in tree:
            size = len(queries[number][1])
            if part and cost + size > budget:
                parts.append((cost, part))
                part, cost = [], len(queries[number][0])
            part.append(number)
            cost += size
        parts.append((cost, part))
    parts.sort(key=lambda item: item[0])
    batch: list[list[int]] = []
    total = 0
    for cost, part in parts:
        if batch and total + cost > budget:
            yield batch
            batch, total = [], 0
        batch.append(part)
        total += cost
    if batch:
        yield batch
