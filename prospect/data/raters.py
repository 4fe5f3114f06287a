"""Who judged the rows, how much of the training weight each rater has, and a bound on that.

    raters = Raters.of(dataset.records, dataset.examples)
    cap = raters.cap(weights, desirable, share=0.1)         # factors for the rows, and what they change

Thumbs of a single user can steer a model (arXiv 2507.02850): what a rater can do grows with the share of the weight.
The rater of a row is who judged its answer; of a pair whose answers two people judged, each has half of the weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from prospect.errors import DataError
from prospect.feedback.records import EXAMPLES, Example, Record

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
ClassWeights = Callable[[float, float], tuple[float, float]]
"""Sums of the desirable and the undesirable rows' weights -> the factors by which a loss multiplies the two classes."""

ROUNDS = 10_000
"""Most rounds towards the fixed point of caps and class weights; tens are usual."""
SETTLED = 1e-12
"""Relative change of the factors at which the fixed point is reached."""
VANISHING = 1e-9
"""A factor below this means that the weight could only be kept in bounds by leaving its rater out."""


@dataclass(frozen=True, slots=True)
class RaterCap:
    """`factors` (N,) for the weights of the rows; shares of the total training weight per name, `before` and `after`;
    `unnamed`, the share after it of rows that name no rater; `remaining`, the sum of all weights over what it was."""

    limit: float
    factors: Floats
    before: dict[str, float]
    after: dict[str, float]
    unnamed: float
    remaining: float

    @property
    def lowered(self) -> list[str]:
        """The raters whose rows count less, the heaviest first."""
        names = [name for name, share in self.before.items() if share > self.limit and self.after[name] > 0]
        return sorted(names, key=lambda name: (-round(self.before[name], 12), name))

    def describe(self) -> str:
        """What the cap does, in a sentence for the user."""
        names = self.lowered
        parts = [f"--max-weight-per-rater {self.limit:g}: {len(names)} of {len(self.before)} raters count less"]
        if names:
            shares = [f"{name} {self.before[name]:.1%} -> {self.after[name]:.1%}" for name in names[:EXAMPLES]]
            parts.append(f" ({', '.join(shares)}{', ...' if len(names) > EXAMPLES else ''})")
        parts.append(f"; {self.remaining:.0%} of the weight remains")
        if self.unnamed:
            parts.append(f"; {self.unnamed:.1%} of it names no rater and has no cap")
        return "".join(parts)

    def to_json(self) -> dict[str, Any]:
        """What config.json keeps."""
        return {
            "raters": len(self.before),
            "unnamed": self.unnamed,
            "remaining": self.remaining,
            "lowered": {name: [self.before[name], self.after[name]] for name in self.lowered},
        }


@dataclass(frozen=True, slots=True)
class Raters:
    """`names`, sorted, of those who judged, and `of_row` (N, 2): the raters of a row's first and last answer as places
    in `names`, -1 where nobody is named. Half of the row's weight belongs to either."""

    names: tuple[str, ...]
    of_row: Ints

    @classmethod
    def of(cls, records: Sequence[Record], examples: Iterable[Example]) -> Raters:
        """The raters of `examples`, whose trees are places in `records`."""
        sides = [
            [records[row.tree].completions[branch].by for branch in (row.branches[0], row.branches[-1])]
            for row in examples
        ]
        names = sorted({name for row in sides for name in row} - {""})
        place = {name: i for i, name in enumerate(names)} | {"": -1}
        of_row = np.array([[place[name] for name in row] for row in sides], np.int64).reshape(-1, 2)
        return cls(tuple(names), of_row)

    def sums(self, weight: Floats) -> tuple[Floats, float]:
        """The weight (R,) of each rater, and that of nobody, of rows' `weight` (N,). The order of the rows plays no
        part."""
        sides = self.of_row.ravel()
        halves = np.repeat(weight / 2, 2)
        order = np.lexsort((halves, sides))
        sums = np.asarray(np.bincount(sides[order] + 1, halves[order], minlength=len(self.names) + 1), np.float64)
        return sums[1:], float(sums[0])

    def cap(
        self,
        weight: Floats,
        desirable: Bools,
        share: float,
        class_weights: ClassWeights = lambda up, down: (1.0, 1.0),
    ) -> RaterCap:
        """The largest factors, at most 1, with which no rater has more than `share` of the total training weight; the
        halves of a pair that two people judged are lowered one by one.

        `weight` and `desirable` are (N,). A row's training weight is its weight times its class's factor, which may
        depend on what the caps leave of the classes (KTO's Eq. 9 does): both are found together, as a fixed point.
        Raises DataError where nobody is named, or no factors will do.
        """
        if not self.names:
            raise DataError(
                "--max-weight-per-rater needs to know who judged, but no answer says who judged it (by). Name the "
                "column (--map by=COLUMN), or leave the option out"
            )
        own, rest = self.by_class(weight, desirable)
        factor = np.ones(len(self.names))
        for _ in range(ROUNDS):
            classes = np.array(class_weights(*(factor @ own + rest).tolist()))
            closer = level(own @ classes, float(rest @ classes), share)
            if closer.min() < VANISHING:
                break
            settled = bool((np.abs(closer - factor) <= SETTLED * closer).all())
            factor = closer
            if settled:
                return self._capped(own, rest, factor, share, class_weights)
        raise DataError(_unreachable(share, own, rest))

    def _capped(self, own: Floats, rest: Floats, factor: Floats, limit: float, class_weights: ClassWeights) -> RaterCap:
        """A cap by its raters' factors (R,)."""
        before, _ = shares(own, rest, class_weights)
        after, unnamed = shares(own * factor[:, None], rest, class_weights)
        return RaterCap(
            limit,
            np.append(factor, 1.0)[self.of_row].mean(axis=1),  # -1, nobody, is the last
            dict(zip(self.names, before.tolist(), strict=True)),
            dict(zip(self.names, after.tolist(), strict=True)),
            unnamed,
            float((factor @ own + rest).sum() / (own.sum() + rest.sum())),
        )

    def by_class(self, weight: Floats, desirable: Bools) -> tuple[Floats, Floats]:
        """The weight (R, 2) of each rater's thumbs up and down, and that of nobody's (2,)."""
        sides = [self.sums(np.where(side, weight, 0.0)) for side in (desirable, ~desirable)]
        return np.stack([sums for sums, _ in sides], axis=1), np.array([rest for _, rest in sides])


def shares(own: Floats, rest: Floats, class_weights: ClassWeights) -> tuple[Floats, float]:
    """Each rater's share (R,) of the training weight, and that of rows that name nobody, from sums `by_class`."""
    sums = own.sum(axis=0) + rest
    classes = np.array(class_weights(*sums.tolist()))
    total = float(sums @ classes) or 1.0
    return own @ classes / total, float(rest @ classes) / total


def level(weight: Floats, rest: float, share: float) -> Floats:
    """The largest factors (R,), at most 1, with which none of the raters' weights (R,) is more than `share` of their
    sum and `rest`; zeros where there are none.

    The k heaviest come down to one level c = share * (k * c + the others' weight), and k is the least number with
    which nobody else is above it.
    """
    order = np.sort(weight)[::-1]
    others = rest + np.append(np.cumsum(order[::-1])[::-1], 0.0)
    room = 1 - share * np.arange(len(order) + 1)
    for k in np.flatnonzero(room > 0).tolist():
        highest = share * others[k] / room[k]
        if k == len(order) or order[k] <= highest * (1 + SETTLED):
            factor: Floats = np.minimum(1.0, np.divide(highest, weight, out=np.ones(len(weight)), where=weight > 0))
            return factor
    return np.zeros(len(weight))


def _unreachable(share: float, own: Floats, rest: Floats) -> str:
    """Why no factors keep everybody below `share`, and what to do."""
    up, down = (int(count) for count in (own > 0).sum(axis=0))
    message = f"--max-weight-per-rater {share:g} cannot be held: "
    if len(own) * share < 1 and not rest.any():
        return f"{message}there are {len(own)} raters, of whom one always has {1 / len(own):.3g} or more. Allow more"
    return (
        f"{message}thumbs up are from {up} raters, thumbs down from {down}, and automatic class weights give "
        "either kind half of the weight. Allow more, or leave the classes as they are with --weights none"
    )
