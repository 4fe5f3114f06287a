"""Losses, modifiers and reference points by name: built-in ones, mixtures, and a user's own, "mine.py:my_loss"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from prospect.errors import ConfigError, nearest
from prospect.losses.functions import load
from prospect.losses.rows import LOSSES, MODIFIERS, REFERENCE_POINTS
from prospect.losses.table import Loss, Modifier, ReferencePoint

Row = TypeVar("Row", Loss, Modifier, ReferencePoint)


def find(name: str) -> Loss:
    """The loss called `name`: a row, a mixture such as "dpo:0.8,sft:1", or a function "my_losses.py:my_loss".

    Raises ConfigError naming the nearest row, or what does not mix.
    """
    parts = [_part(text.strip()) for text in name.split(",") if text.strip()]
    if len(parts) == 1 and parts[0][1] == 1.0:
        return parts[0][0]
    if not parts:
        raise ConfigError("--loss is empty: name a loss, as listed by `prospect losses`")
    return mix(name, parts)


def mix(name: str, parts: Sequence[tuple[Loss, float]]) -> Loss:
    """The weighted sum of losses: their terms, with their coefficients. Raises ConfigError where views do not fit or
    two parts want different preparations."""
    rows = [row for row, _ in parts]
    views = {row.view for row in rows} - {"text"} or {"text"}
    if len(views) > 1:
        told = ", ".join(f"{row.name} ({row.view})" for row in rows)
        raise ConfigError(f"{name} mixes losses that read different kinds of feedback: {told}")
    chosen: dict[str, Any] = {}
    for field in ("reference_point", "constants", "row_weights", "prepare", "live"):
        wanted = {getattr(row, field) for row in rows} - {None}
        if len(wanted) > 1:
            raise ConfigError(
                f"{name}: the parts disagree on the {field.replace('_', ' ')}: {', '.join(sorted(wanted))}"
            )
        chosen[field] = wanted.pop() if wanted else None
    terms = [replace(term, coefficient=term.coefficient * weight) for row, weight in parts for term in row.terms]
    return Loss(
        name=name,
        view=views.pop(),
        terms=tuple(terms),
        title="Mixture of " + ", ".join(row.name for row in rows),
        family="mixture",
        couples="step" if any(row.couples == "step" for row in rows) else "none",
        learning_rate=min(row.learning_rate for row in rows),
        value_head=any(row.value_head for row in rows),
        **chosen,
    )


def modified(loss: Loss, modifiers: Sequence[str]) -> Loss:
    """`loss` wrapped by modifiers, in their order.

    Raises ConfigError for unknown ones and for two moving references.
    """
    for name in modifiers:
        wrap = _named(name, MODIFIERS, "modifier")
        if wrap.live and loss.live:
            raise ConfigError(f"--modify {' '.join(modifiers)}: only one of them can move the reference")
        if not loss.needs_reference and (wrap.changes or wrap.live):
            raise ConfigError(f"--modify {name} changes log-ratios, but {loss.name} reads none: it has no reference")
        loss = replace(
            loss,
            changes=loss.changes + wrap.changes,
            weigh=loss.weigh + wrap.weigh,
            live=wrap.live or loss.live,
        )
    return loss


def estimator(name: str) -> ReferencePoint:
    """The reference point called `name`, or a function "my_points.py:my_point". Raises ConfigError."""
    if ".py:" not in name:
        return _named(name, REFERENCE_POINTS, "reference point")
    function = load(name)
    row = getattr(function, "row", None) or ReferencePoint(name, name, "partners", "")
    return replace(row, name=name)


def _part(text: str) -> tuple[Loss, float]:
    """A loss and its weight in a mixture: "dpo", "dpo:0.8", "my.py:mine", "my.py:mine:0.5"."""
    name, _, weight = text.rpartition(":")
    try:
        found = float(weight) if name else 1.0
    except ValueError:
        name, found = text, 1.0
    name = name or text
    if not 0 < found < float("inf"):
        raise ConfigError(f"--loss {text}: a weight must be a positive number")
    if ".py:" not in name:
        return _named(name, LOSSES, "loss"), found
    function = load(name)
    row = getattr(function, "row", None)
    if not isinstance(row, Loss):
        raise ConfigError(
            f'{name} is no loss: put @prospect.loss(view="binary", reads=("log_ratio", "desirable")) above it'
        )
    return replace(row, name=name), found


def _named(name: str, rows: dict[str, Row], what: str) -> Row:
    if name not in rows:
        raise ConfigError(f'there is no {what} "{name}".{nearest(name, rows)} Known: {", ".join(rows)}')
    return rows[name]
