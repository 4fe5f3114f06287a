"""Arguments of losses that are taken from the training rows before the first step, and written to config.json."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Protocol


class Row(Protocol):
    """What a training row says of itself."""

    @property
    def desirable(self) -> bool | None: ...
    @property
    def weight(self) -> float: ...
    @property
    def score(self) -> float | None: ...


def balanced_weights(rows: Sequence[Row]) -> dict[str, float]:
    """lambda_D, lambda_U with lambda_D * sum(w_D) = lambda_U * sum(w_U), the majority side staying at 1.

    The lower end of arXiv 2402.01306 Eq. 9, lambda_D n_D / (lambda_U n_U) in [1, 3/2].
    """
    up = sum(row.weight for row in rows if row.desirable)
    down = sum(row.weight for row in rows if not row.desirable)
    if up == 0 or down == 0:
        return {"desirable_weight": 1.0, "undesirable_weight": 1.0}
    return {"desirable_weight": max(1.0, down / up), "undesirable_weight": max(1.0, up / down)}


def median_score(rows: Sequence[Row]) -> dict[str, float]:
    """TGO's threshold: the median score of the training rows (arXiv 2605.04653)."""
    return {"threshold": float(statistics.median(row.score for row in rows if row.score is not None))}
