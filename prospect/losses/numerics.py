"""Elementary functions in the form that keeps their digits and their finiteness; and sums and means over completions
that lie one behind the other in one row of tokens.

Completion k's tokens are token_x[offsets[k] : offsets[k + 1]]; `offsets` is (N+1,) int64 and starts at 0. torch is
imported where something is computed: the losses stand in these files as a table, too, which is to be read at once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

EXPONENT = 30.0
"""Where exponentials are continued by their tangent. e^30 is 1e13, whose square is still a float32, so the norm of a
gradient stays finite."""


def softplus(u: Tensor) -> Tensor:
    """log(1 + e^u) = -log sigmoid(-u): finite for every u."""
    from torch.nn import functional

    return functional.softplus(u)


def xlogx(x: Tensor) -> Tensor:
    """x * log x, and 0 at 0."""
    import torch

    product: Tensor = torch.special.xlogy(x, x)
    return product


def logsigmoid(u: Tensor) -> Tensor:
    """log sigmoid(u): finite for every u."""
    from torch.nn import functional

    return functional.logsigmoid(u)


def exp(u: Tensor) -> Tensor:
    """e^u up to u = 30, from there on its tangent: value and gradient are continuous, convex and finite."""
    bounded = u.clamp(max=EXPONENT)
    return bounded.exp() * (1 + (u - bounded))


def expm1(u: Tensor) -> Tensor:
    """e^u - 1 without cancellation near 0, continued by its tangent from u = 30 on, as `exp` is."""
    bounded = u.clamp(max=EXPONENT)
    return bounded.expm1() + bounded.exp() * (u - bounded)


def log(x: Tensor) -> Tensor:
    """log x of numbers that are positive but for an underflow, which counts as the smallest number of its type."""
    import torch

    return x.clamp(min=torch.finfo(x.dtype).tiny).log()


def log1mexp(a: Tensor) -> Tensor:
    """log(1 - e^a) for a < 0, without cancellation on either side of -log 2; -inf at a = 0."""
    half = -math.log(2)
    # Each branch sees only its own half of the axis: where() would multiply the other's infinite slope by 0.
    near = (-a.clamp(min=half).expm1()).log()
    far = (-a.clamp(max=half).exp()).log1p()
    return near.where(a > half, far)


def log_odds(a: Tensor) -> Tensor:
    """log(p / (1 - p)) of a log-prob a = log p, at most one rounding step below 0, so that certainty is finite."""
    import torch

    a = a.clamp(max=-torch.finfo(a.dtype).eps)
    return a - log1mexp(a)


def normal_quantile_of(p: Tensor) -> Tensor:
    """x with P(standard normal <= x) = p."""
    import torch

    x: Tensor = torch.special.ndtri(p)
    return x


def segment_index(offsets: Tensor, like: Tensor) -> Tensor:
    """The number of the completion that each token belongs to, (T,), on the device of `like`."""
    import torch

    lengths = offsets.diff().to(like.device)
    # With the number of tokens told, a device needs not be asked for it.
    return torch.repeat_interleave(torch.arange(len(lengths), device=like.device), lengths, output_size=len(like))


def segment_position(offsets: Tensor, like: Tensor) -> Tensor:
    """How many tokens of its completion stand before each token, (T,), on the device of `like`."""
    import torch

    starts = offsets[:-1].to(like.device)[segment_index(offsets, like)]
    return torch.arange(len(like), device=like.device) - starts


def segment_sum(values: Tensor, offsets: Tensor) -> Tensor:
    """Sums of consecutive runs of `values` (T, ...), bounded by `offsets` (N+1,): (N, ...).

    Every run is added in one fixed order. (index_add adds in any order on CUDA, so that no two sums are the same.)
    """
    import torch

    lengths = offsets.diff().to(values.device)
    return torch.segment_reduce(values, "sum", lengths=lengths, unsafe=True)


def segment_log_softmax(values: Tensor, offsets: Tensor) -> Tensor:
    """log of e^value over the sum of e^value in its own run, (N,): finite for every finite value."""
    import torch

    index, lengths = segment_index(offsets, values), offsets.diff().to(values.device)
    top = torch.segment_reduce(values.detach(), "max", lengths=lengths, unsafe=True)
    shifted = values - top[index]
    return shifted - segment_sum(shifted.exp(), offsets).log()[index]


def segment_mean(values: Tensor, offsets: Tensor) -> Tensor:
    """Means of such runs: (N, ...). An empty run has no mean: NaN."""
    lengths = offsets.diff().to(values.device)
    return segment_sum(values, offsets) / lengths.view(-1, *[1] * (values.ndim - 1))


def segment_quantile(values: Tensor, offsets: Tensor, share: float) -> Tensor:
    """Quantiles of such runs of `values` (T,), between two values interpolated linearly: (N,). No run is empty."""
    index = segment_index(offsets, values)
    order = values.argsort(stable=True)
    ordered = values[order[index[order].argsort(stable=True)]]
    starts, lengths = offsets[:-1].to(values.device), offsets.diff().to(values.device)
    place = share * (lengths - 1).to(values.dtype)
    below = place.floor().long()
    low, high = ordered[starts + below], ordered[starts + (below + 1).minimum(lengths - 1)]
    return low.lerp(high, place - below)
