"""What every loss must satisfy, as functions that the tests of each module call on their own losses.

A case is a loss with its arguments filled in and the kinds of its positional inputs, one letter each:
r log-ratio, L log-prob, n length, y thumb, z reference point, s score, m margin, w win rate, t token log-prob, V
value of the prompt, D KL; without gradient c log-ratio, v value of the prompt, q quantile and k count of the
reference's, u random number.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

EXTREMES: dict[str, list[float]] = {
    "r": [-1e4, -60.0, -1.0, 0.0, 1.0, 60.0, 1e4],
    "L": [-1e4, -60.0, -1.0, -1e-9, 0.0],
    "t": [-1e4, -60.0, -1.0, -1e-9, 0.0],
    "n": [1, 1000],
    "y": [0, 1],
    "s": [-1e4, 0.0, 1e4],
    "m": [0.0, 1e-6, 1.0, 1e4],
    "c": [-1e4, 0.0, 1e4],
    "v": [-1e4, 0.0, 1e4],
    "V": [-1e4, 0.0, 1e4],
    "w": [0.0, 0.5, 1.0],
    "q": [0.0, 0.5, 1.0],
    "k": [1.0, 2.0, 1000.0],
    "D": [0.0, 1.0, 1e4],
}
LEARNT = "rLtVD"
"""The kinds that carry gradient."""


@dataclass(frozen=True)
class Case:
    """A loss and the kinds of its inputs. `coupled` where one row's loss depends on the other rows."""

    loss: Callable[..., Tensor]
    kinds: str
    coupled: bool = False

    @property
    def learnt(self) -> list[int]:
        return [i for i, kind in enumerate(self.kinds) if kind in LEARNT]


def draw(kinds: str, rows: int = 8, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    """Random inputs, away from 0 and 1 nat, where some losses have a kink."""
    g = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return (torch.rand(rows, generator=g, dtype=torch.float64) * (high - low) + low).to(dtype)

    makers: dict[str, Callable[[], Tensor]] = {
        "r": lambda: uniform(-12, 12),
        "L": lambda: uniform(-40, -2),
        "t": lambda: uniform(-4, -0.1),
        "n": lambda: torch.randint(3, 20, (rows,), generator=g),
        "y": lambda: torch.rand(rows, generator=g) < 0.5,
        "z": lambda: torch.tensor(0.3, dtype=dtype),
        "s": lambda: uniform(-1, 1),
        "m": lambda: uniform(0.1, 4),
        "c": lambda: uniform(-12, 12),
        "v": lambda: uniform(-1, 1),
        "V": lambda: uniform(-1, 1),
        "w": lambda: uniform(0, 1),
        "q": lambda: uniform(0, 1),
        "k": lambda: torch.randint(1, 20, (rows,), generator=g).to(dtype),
        "D": lambda: uniform(0, 5),
        "u": lambda: uniform(0.01, 0.99),
    }
    return [makers[kind]() for kind in kinds]


def gradients_are_right(case: Case) -> None:
    """Against finite differences in float64."""
    inputs = draw(case.kinds)
    for i in case.learnt:
        inputs[i].requires_grad_()
    assert torch.autograd.gradcheck(case.loss, inputs)


def extremes_are_finite(case: Case, dtype: torch.dtype) -> None:
    """Value and gradient at every combination of extreme inputs, in the dtype of the inputs."""
    grid = torch.tensor(list(itertools.product(*(EXTREMES.get(kind, [0.3]) for kind in case.kinds))), dtype=dtype)
    inputs = [column.bool() if kind == "y" else column.clone() for kind, column in zip(case.kinds, grid.T, strict=True)]
    learnt = [inputs[i].requires_grad_() for i in case.learnt]
    loss = case.loss(*inputs)
    assert loss.dtype == dtype
    assert loss.isfinite().all()
    for gradient in torch.autograd.grad(loss.sum(), learnt):
        assert gradient.isfinite().all()


def order_does_not_matter(case: Case) -> None:
    """Permuted rows give permuted losses."""
    inputs = draw(case.kinds)
    order = torch.randperm(len(inputs[0]), generator=torch.Generator().manual_seed(1))
    permuted = [x[order] if x.dim() else x for x in inputs]
    torch.testing.assert_close(case.loss(*permuted), case.loss(*inputs)[order], rtol=0, atol=1e-14)


def rows_are_alone(case: Case) -> None:
    """A batch cut in two gives the same losses, unless the loss is coupled."""
    inputs = draw(case.kinds)
    halves = [case.loss(*(x[part] if x.dim() else x for x in inputs)) for part in (slice(0, 3), slice(3, None))]
    same = torch.allclose(torch.cat(halves), case.loss(*inputs), rtol=0, atol=1e-14)
    assert same is not case.coupled


def nothing_gives_nothing(case: Case, dtype: torch.dtype) -> None:
    """Empty in, empty out, in the same dtype."""
    inputs = draw(case.kinds, rows=0, dtype=dtype)
    loss = case.loss(*inputs)
    assert loss.shape == (0,)
    assert loss.dtype == dtype


def general_properties(case: Case) -> None:
    """All of the above."""
    gradients_are_right(case)
    order_does_not_matter(case)
    rows_are_alone(case)
    for dtype in (torch.float32, torch.float64):
        extremes_are_finite(case, dtype)
        nothing_gives_nothing(case, dtype)


def f64(*values: float) -> Tensor:
    """A vector in float64."""
    return torch.tensor(values, dtype=torch.float64)


def slopes(loss: Callable[..., Tensor], *at: float) -> list[float]:
    """d loss / d input at one point, for each input."""
    inputs = [f64(x).requires_grad_() for x in at]
    return [g.item() for g in torch.autograd.grad(loss(*inputs).sum(), inputs)]
