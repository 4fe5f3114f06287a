"""LOSSES: one row per loss. A row names its function by string, so that reading the table imports no torch.

To add a loss: write a pure function (see `unpaired.py`), add a row here, test its values. The loop reads the row and
never branches on a loss's name. The objective of a step is, over all micro-batches and ranks,

    sum over terms of  coefficient * sum(weight * loss) / count of the term's unit

where counts ignore weights, so that doubling a row's weight doubles its gradient.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from prospect.errors import ConfigError, nearest
from prospect.feedback.records import View

Unit = Literal["examples", "pairs", "tokens"]
Read = Literal[
    "log_ratio", "logp", "reference_logp", "length", "desirable", "z0", "token_logp", "token_log_ratio", "offsets"
]
"""What a function may ask for, by argument name. Functions of pairs get each of these once per side, as `chosen`,
`rejected` where they read `log_ratio` alone, else as `chosen_NAME` and `rejected_NAME`."""

REFERENCE_READS = {"log_ratio", "reference_logp", "token_log_ratio"}


@dataclass(frozen=True, slots=True)
class Term:
    """One summand of the objective. `function` is "module:name"; `reads` are its positional arguments in order."""

    function: str
    unit: Unit = "examples"
    reads: tuple[Read, ...] = ("log_ratio",)
    coefficient: float = 1.0

    def load(self) -> Callable[..., Any]:
        """The function itself (imports its module, and torch with it)."""
        return load(self.function)


@dataclass(frozen=True, slots=True)
class Loss:
    """A row of the table.

    `constants` names a function (rows' desirable flags, rows' weights) -> arguments that are taken from the data, fixed
    before the first step and written to config.json; what the user gives wins. `reference_point` is the default
    estimator.
    `couples` "step" means that one row's loss depends on the others' matched values.
    """

    name: str
    view: View
    terms: tuple[Term, ...]
    title: str
    paper: str
    equation: str = ""
    halo: bool = False
    reference_point: str | None = None
    constants: str | None = None
    couples: Literal["none", "step"] = "none"
    learning_rate: float = 5e-6

    @property
    def needs_reference(self) -> bool:
        """True where a term reads a log-ratio: only then is there a reference pass and a check that r = 0 at the
        start."""
        return any(REFERENCE_READS & set(term.reads) for term in self.terms)


LOSSES: dict[str, Loss] = {
    row.name: row
    for row in (
        Loss(
            "kto",
            view="binary",
            terms=(Term("prospect.losses.unpaired:kto", "examples", ("log_ratio", "desirable", "z0")),),
            title="Kahneman-Tversky Optimization: the utility of each answer, from a thumb",
            paper="arXiv 2402.01306",
            equation="Eq. 8",
            halo=True,
            reference_point="mismatched",
            constants="prospect.losses.table:balanced_weights",
        ),
        Loss(
            "dpo",
            view="pairs",
            terms=(Term("prospect.losses.paired:dpo", "pairs", ("log_ratio",)),),
            title="Direct Preference Optimization: the likelihood of each preference",
            paper="arXiv 2305.18290",
            equation="Eq. 7",
            halo=True,
            learning_rate=5e-7,
        ),
        Loss(
            "sft",
            view="text",
            terms=(Term("prospect.losses.likelihood:sft", "tokens", ("token_logp",)),),
            title="Supervised fine-tuning on the answers nobody disliked",
            paper="",
            learning_rate=1e-5,
        ),
    )
}

REFERENCE_POINTS: dict[str, str] = {
    "mismatched": "prospect.losses.reference_point:mismatched",
    "unclamped": "prospect.losses.reference_point:unclamped",
    "zero": "prospect.losses.reference_point:zero",
}
PARTNER_FREE = {"zero"}
"""Estimators that look at no partner row: no partner pass is run for them."""


def balanced_weights(desirable: list[bool], weights: list[float]) -> dict[str, float]:
    """lambda_D, lambda_U with lambda_D * sum(w_D) = lambda_U * sum(w_U), the majority side staying at 1.

    The lower end of arXiv 2402.01306 Eq. 9, lambda_D n_D / (lambda_U n_U) in [1, 3/2].
    """
    up = sum(w for d, w in zip(desirable, weights, strict=True) if d)
    down = sum(w for d, w in zip(desirable, weights, strict=True) if not d)
    if up == 0 or down == 0:
        return {"desirable_weight": 1.0, "undesirable_weight": 1.0}
    return {"desirable_weight": max(1.0, down / up), "undesirable_weight": max(1.0, up / down)}


def find(name: str) -> Loss:
    """The row called `name`. Raises ConfigError naming the nearest one."""
    if name not in LOSSES:
        raise ConfigError(f'there is no loss "{name}".{nearest(name, LOSSES)} Known: {", ".join(LOSSES)}')
    return LOSSES[name]


def defaults(loss: Loss) -> dict[str, Any]:
    """Every hyper-parameter of a loss with its default: the keyword-only arguments of its terms' functions."""
    found: dict[str, Any] = {}
    for term in loss.terms:
        for name, parameter in inspect.signature(term.load()).parameters.items():
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                found[name] = parameter.default
    return found


def arguments(loss: Loss, given: Mapping[str, Any], data: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Defaults, then constants taken from the data, then what the user gave. Raises ConfigError on unknown names and on
    values that are not positive numbers."""
    known = defaults(loss)
    for name, value in given.items():
        if name not in known:
            raise ConfigError(
                f'the loss "{loss.name}" has no argument "{name}".{nearest(name, known)} '
                f"It has: {', '.join(known) or 'none'}"
            )
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value < float("inf"):
            raise ConfigError(f"--loss.{name} must be a positive number, not {value!r}")
    return {**known, **(data or {}), **{name: float(value) for name, value in given.items()}}


def estimator(name: str) -> Callable[..., Any]:
    """The reference-point estimator called `name`. Raises ConfigError naming the nearest one."""
    if name not in REFERENCE_POINTS:
        raise ConfigError(
            f'there is no reference point "{name}".{nearest(name, REFERENCE_POINTS)} '
            f"Known: {', '.join(REFERENCE_POINTS)}"
        )
    return load(REFERENCE_POINTS[name])


def load(dotted: str) -> Callable[..., Any]:
    module, _, name = dotted.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


assert all(set(term.reads) <= set(get_args(Read)) for row in LOSSES.values() for term in row.terms)
