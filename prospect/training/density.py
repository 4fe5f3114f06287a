"""BCO's density-ratio weights: where thumbs up and thumbs down come from different prompts, the thumbs down count as
they would on the prompts of the thumbs up.

    weight of an undesirable answer = p(desirable | prompt) / p(undesirable | prompt), kept within [0.5, 10]

p is a logistic regression on the start model's mean hidden state of the prompt; desirable answers weigh 1.
Source: arXiv 2404.04656; bounds as in TRL. Choice: the embedding is the start model's own, so that no other model has
to be named; TRL asks for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from prospect.data.dataset import Dataset
from prospect.data.textids import Ids
from prospect.engine.device import release, within_memory
from prospect.engine.packing import Branches, forward
from prospect.engine.policy import Policy
from prospect.errors import RunError
from prospect.losses.numerics import segment_mean

LOWEST, HIGHEST = 0.5, 10.0
RIDGE = 1.0
"""L2 penalty on the regression's slopes, over standardised features."""
TOKENS = 8192


def weights(policy: Policy, dataset: Dataset) -> list[float]:
    """A factor for each row's weight."""
    features = embeddings(policy, dataset)
    x = np.stack([features[row.tree] for row in dataset.examples])
    y = np.array([bool(row.desirable) for row in dataset.examples])
    p = regress(x, y)
    ratio = np.clip(p / (1 - p + 1e-8), LOWEST, HIGHEST)
    return [1.0 if good else float(r) for good, r in zip(y, ratio, strict=True)]


def embeddings(policy: Policy, dataset: Dataset) -> npt.NDArray[np.float64]:
    """The mean hidden state of each tree's prompt (trees, H), standardised."""
    order = sorted(range(len(dataset.trees)), key=lambda k: len(dataset.trees[k].prompt))
    by_tree: dict[int, npt.NDArray[np.float64]] = {}
    lengths = np.array([len(dataset.trees[k].prompt) for k in order])
    most = TOKENS
    while len(by_tree) < len(order):
        ends = np.cumsum(lengths[len(by_tree) :])
        batch = order[len(by_tree) : len(by_tree) + max(1, int((ends <= most).sum()))]
        means = within_memory(partial(_means, policy, [dataset.trees[k].prompt for k in batch]))
        if means is not None:
            by_tree |= dict(zip(batch, means, strict=True))
            continue
        release(policy.device)
        if len(batch) == 1:
            raise RunError(f"out of memory for one prompt of {ends[0]} tokens alone. Choose a shorter --max-length")
        most = int(ends[len(batch) - 1]) // 2
    x = np.stack([by_tree[k] for k in range(len(dataset.trees))])
    spread = x.std(0)
    return np.asarray((x - x.mean(0)) / np.where(spread > 0, spread, 1.0))


@torch.no_grad()
def _means(policy: Policy, prompts: Sequence[Ids]) -> npt.NDArray[np.float64]:
    """The mean hidden state of each prompt (N, H)."""
    # A prompt of one token stands twice: the state of its first is what is left then.
    twice = [np.concatenate([p, p]) if len(p) == 1 else p for p in prompts]
    output = forward(policy, [Branches(p[:1], (p[1:],)) for p in twice], want_hidden=True)
    assert output.hidden is not None
    return np.asarray(segment_mean(output.hidden.double(), output.offsets).cpu().numpy())


def regress(x: npt.NDArray[np.float64], y: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """p(y | x) of each row by ridge-penalised logistic regression with an intercept."""
    from scipy.optimize import minimize  # slow to import, and few runs need it

    x = np.hstack([x, np.ones((len(x), 1))])
    sign = np.where(y, 1.0, -1.0)

    def loss(w: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        margin = sign * (x @ w)
        slopes = np.append(w[:-1], 0.0)
        value = np.logaddexp(0, -margin).sum() + 0.5 * RIDGE * (slopes**2).sum()
        gradient = -(x.T @ (sign / (1 + np.exp(margin)))) + RIDGE * slopes
        return float(value), gradient

    solution = minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B")
    return np.asarray(1 / (1 + np.exp(-(x @ solution.x))))
