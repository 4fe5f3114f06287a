"""Losses and reference points of the user's own: a decorator above a function makes it a row of the table.

    @prospect.loss(view="binary", reads=("log_ratio", "desirable"))
    def my_loss(log_ratio, desirable, *, beta=0.1):
        return torch.where(desirable, -beta * log_ratio, beta * log_ratio).exp()

    prospect train --loss my_losses.py:my_loss --loss.beta 0.2 ...

A value function of KTO needs no decorator: --loss.value my_values.py:my_value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, cast, get_args

from prospect.errors import ConfigError
from prospect.feedback.records import View
from prospect.losses.table import (
    Loss,
    Part,
    Read,
    ReferencePoint,
    Term,
    Unit,
)

Function = TypeVar("Function", bound=Callable[..., Any])


def loss(
    *,
    view: View,
    reads: Sequence[Read],
    unit: Unit | None = None,
    rows: Part = "all",
    reference_point: str | None = None,
    couples: Literal["none", "step"] = "none",
    learning_rate: float = 5e-6,
) -> Callable[[Function], Function]:
    """Make a function a loss. It gets `reads` as tensors, in order, of pairs each once per side; its keyword-only
    arguments become --loss.NAME; it returns one number per `unit`, by default per example, or per pair.

    `reference_point` is the default estimator of z0, for a loss that reads it. Raises ConfigError for unknown inputs.
    """
    unknown = set(reads) - set(get_args(Read))
    if unknown:
        raise ConfigError(f"a loss cannot read {', '.join(sorted(unknown))}. Known: {', '.join(get_args(Read))}")
    if "z0" in reads and reference_point is None:
        reference_point = "mismatched" if view != "pairs" else "zero"

    def register(function: Function) -> Function:
        told = (function.__doc__ or function.__name__).strip().splitlines()[0]
        row = Loss(
            name=function.__name__,
            view=view,
            terms=(Term(function, unit or ("pairs" if view == "pairs" else "examples"), tuple(reads), rows=rows),),
            title=told,
            reference_point=reference_point,
            couples=couples,
            learning_rate=learning_rate,
            value_head="value" in reads,
        )
        cast(Any, function).row = row
        return function

    return register


def reference_point(
    *, averages: Literal["partners", "partner_logp", "matched", "token_kl", "samples", "nothing"] = "partners"
) -> Callable[[Function], Function]:
    """Make a function an estimator of z0: (prospect.losses.reference_point.Statistics, state) -> (z0, state)."""

    def register(function: Function) -> Function:
        cast(Any, function).row = ReferencePoint(
            function.__name__, function, averages, (function.__doc__ or "").strip()
        )
        return function

    return register
