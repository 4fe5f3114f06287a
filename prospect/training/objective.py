"""From a loss of the table to numbers: the objective of some rows of a step, and the step's metrics.

sum over terms of  coefficient * sum(weight * loss) / count of the term's unit in the whole step
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from prospect.data.dataset import Dataset
from prospect.errors import ConfigError
from prospect.losses.modifiers import Motion
from prospect.losses.numerics import segment_index, segment_mean, segment_sum
from prospect.losses.registry import Loss, Modifier, Part, Term, bound, running_inputs
from prospect.training.batch import Batch, Completions

Function = Callable[..., Tensor]

OF_ROWS = {
    *("desirable", "score", "margin", "z0", "group", "old_logp", "reference_quantile", "reference_count", "target"),
    *("draw", "running"),
}
"""Inputs that a row, or the whole step, has once, be it of pairs."""
OF_ANSWERS = {"win_rate"}
"""Inputs that each answer of a row has."""
SATURATED = 4.0
"""|implied reward - reference point| beyond which the gradient of a logistic loss is below 7 % of its largest."""
SUMS = (
    "objective",
    "desirable",
    "undesirable",
    "reward_desirable",
    "reward_undesirable",
    "correct",
    "saturated",
    "judged",
    "decided",
)
"""What a step's metrics are made of, as one float64 vector, so that shares of ranks add up in one message."""


class Objective:
    """A loss with its arguments filled in: `count` is of a step, a call is a batch's share of the step's objective."""

    def __init__(self, loss: Loss, arguments: Mapping[str, Any]) -> None:
        self.loss, self.arguments = loss, dict(arguments)
        self.terms: list[tuple[Term, Function]] = [(term, bound(term.function, arguments)) for term in loss.terms]
        modifiers = [(m, bound(m.function, arguments)) for m in loss.modifiers if m.changes != "reference"]
        self.changes: list[tuple[Modifier, Function]] = [m for m in modifiers if m[0].changes != "weight"]
        self.weights: list[tuple[Modifier, Function]] = [m for m in modifiers if m[0].changes == "weight"]
        self.pairs, self.groups = loss.view == "pairs", loss.view == "groups"
        self.reads_sum_p2 = "token_sum_p2" in loss.reads
        self.reads_value = loss.value_head
        self.reads_kl = loss.live
        self.reads_target = "target_logp" in loss.reads
        self.reads_draw = "draw" in loss.reads
        self._running = None if loss.running is None else bound(loss.running, arguments)

    @property
    def beta(self) -> float:
        """What turns a log-ratio into an implied reward."""
        return float(self.arguments.get("beta", self.arguments.get("tau", 1.0)))

    @cached_property
    def motion(self) -> Motion | None:
        """How the reference moves, if it does."""
        return None if self.loss.motion is None else bound(self.loss.motion, self.arguments)()

    def count(self, dataset: Dataset, rows: Iterable[int]) -> list[int]:
        """The whole step's examples, pairs, groups or tokens that each term is about, on all ranks. Weights do not
        count."""
        counts = []
        for term, _ in self.terms:
            mine = [dataset.examples[i] for i in rows]
            if not self.pairs:
                mine = [row for row in mine if self._is_about(term.rows, bool(row.desirable))]
            sides = self._sides(term.rows)
            if term.unit == "tokens":
                counts.append(sum(len(dataset.completion(row, side)) for row in mine for side in sides))
            else:
                counts.append(len({row.tree for row in mine}) if term.unit == "groups" else len(mine))
        return counts

    def __call__(self, batch: Batch, counts: list[int]) -> Tensor:
        """The batch's share of the step's objective, a scalar."""
        weight = batch.weight
        for modifier, function in self.weights:
            for side in range(len(batch.sides)):
                weight = weight * function(*(self._input(name, batch, side) for name in modifier.reads)).detach()
        if self.weights:
            batch = replace(batch, weight=weight)
        total = torch.zeros((), dtype=weight.dtype, device=weight.device)
        for (term, function), count in zip(self.terms, counts, strict=True):
            if count:
                total = total + term.coefficient * self._term(term, function, batch) / count
        return total

    @torch.no_grad()
    def running(self, batch: Batch, before: Tensor | None) -> Tensor | None:
        """The loss's running statistics with those of a whole step, which `batch` is; None where it has none."""
        if self.loss.running is None or self._running is None:
            return None
        names = running_inputs(self.loss.running, self.pairs)
        sides = self._sides("all")
        inputs = [self._input(name, batch, k).detach() for name in names for k in ((0,) if name in OF_ROWS else sides)]
        after: Tensor = self._running(*inputs, before)
        return after

    def _term(self, term: Term, function: Function, batch: Batch) -> Tensor:
        """sum(weight * loss) of one term."""
        sides = self._sides(term.rows)
        if term.rows != "all" and self.loss.view in ("binary", "scores", "groups"):
            batch = batch.take([k for k, thumb in enumerate(batch.thumbs) if self._is_about(term.rows, thumb)])
        arguments = [self._input(name, batch, k) for name in term.reads for k in ((0,) if name in OF_ROWS else sides)]
        loss = function(*arguments)
        weight = batch.weight
        if term.unit == "tokens":
            assert len(sides) == 1, "a loss per token is about one answer of a pair"
            side = batch.sides[sides[0]]
            weight = weight.repeat_interleave(side.length, output_size=len(side.token_logp))
        if term.unit == "groups":
            weight = segment_mean(weight, batch.group)
        return (weight * loss).sum()

    def _input(self, name: str, batch: Batch, side: int) -> Tensor:
        """An input, with the modifiers' changes. A change to token_log_ratio shows in log_ratio too."""
        completions = batch.sides[side]
        value: Tensor | None
        if name in OF_ROWS:
            value = getattr(batch, name)
        elif name in OF_ANSWERS:
            value = getattr(batch, name)[:, side]
        elif name == "log_ratio" and any(change.changes == "token_log_ratio" for change, _ in self.changes):
            value = segment_sum(self._input("token_log_ratio", batch, side), completions.offsets)
        else:
            value = getattr(completions, name)
        assert value is not None, "what a loss reads was computed for it"
        for change, function in self.changes:
            if change.changes == name:
                changed = function(value, *(getattr(completions, other) for other in change.reads))
                value = changed if change.rows == "all" else self._where(change.rows, batch, side, changed, value)
        return value

    def _where(self, part: Part, batch: Batch, side: int, changed: Tensor, value: Tensor) -> Tensor:
        if self.pairs:
            return changed if side in self._sides(part) else value
        return torch.where(batch.desirable if part == "desirable" else ~batch.desirable, changed, value)

    def _sides(self, part: Part) -> tuple[int, ...]:
        return {"all": (0, 1), "desirable": (0,), "undesirable": (1,)}[part] if self.pairs else (0,)

    def _is_about(self, part: Part, desirable: bool) -> bool:
        return part == "all" or self.loss.view == "text" or desirable == (part == "desirable")

    def sums(self, batch: Batch, share: Tensor, rounding: float) -> Tensor:
        """SUMS of a batch (9,) float64, on its device and without waiting for it; `share` is its share of the
        objective. Of pairs, chosen answers count as desirable and rejected as undesirable; of groups, those above and
        below their group's mean score, and such a row is right where its reward lies on the same side of the group's
        mean reward. A row whose log-ratios lie within `rounding` nats is undecided and half correct: while the policy
        is its own reference, every row is."""
        values = [share.double(), *[share.new_zeros((), dtype=torch.float64)] * (len(SUMS) - 1)]
        if batch.sides[0].token_reference_logp is not None:
            rewards = [self.beta * side.log_ratio.double() for side in batch.sides]
            if self.pairs:
                good, bad = rewards
                gap = good - bad
                counts = torch.ones_like(good), torch.ones_like(bad)
            elif self.groups:
                good = bad = rewards[0]
                assert batch.score is not None, "rows of groups have scores"
                score, index = batch.score.double(), segment_index(batch.group, good)
                above = score - segment_mean(score, batch.group)[index]
                better = above.sign().where(above.abs() > 1e-9 * (1 + score.abs()), 0)  # equal scores, up to rounding
                counts = (better > 0).double(), (better < 0).double()
                gap = better * (good - segment_mean(good, batch.group)[index])
            else:
                good = bad = rewards[0]
                desirable = batch.desirable
                counts = desirable.double(), (~desirable).double()
                above = rewards[0] - self.beta * (0.0 if batch.z0 is None else batch.z0)
                gap = torch.where(desirable, above, -above)
            judged = counts[0] if self.pairs else counts[0] + counts[1]
            decided = gap.abs() > self.beta * rounding
            values[1:] = [
                counts[0].sum(),
                counts[1].sum(),
                (good * counts[0]).sum(),
                (bad * counts[1]).sum(),
                (torch.where(decided, (gap > 0).double(), 0.5) * judged).sum(),
                (gap.abs() > SATURATED).sum().double(),
                judged.sum(),
                decided.sum().double(),
            ]
        return torch.stack(values)

    def rehearse(self) -> None:
        """Compute four made-up rows and their gradient, so that arguments or a function that cannot work are told
        before a model is loaded. Raises ConfigError."""
        reward = torch.tensor([0.0, 0.4, -0.5, 1.2], requires_grad=True)
        lengths = torch.tensor([2, 1, 3, 2])
        bounds = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        reference = torch.linspace(-3.0, -0.2, 8)

        def side(sign: float) -> Completions:
            logp = reference + (sign * reward / lengths).repeat_interleave(lengths)
            squares, kl = logp.detach().exp().square(), (logp - reference).square() / 2
            return Completions(logp, bounds, reference, squares, logp * 0, kl, torch.stack([logp, logp - 1], 1))

        sides = (side(1.0), side(-0.5)) if self.pairs else (side(1.0),)
        scores, thumbs = torch.tensor([1.0, 0.25, 0.5, 2.0]), (True, False, False, True)
        columns = {
            "win_rate": torch.tensor([[1.0, 0.25], [0.5, 0.5], [0.75, 0.0], [0.5, 0.25]])[:, : len(sides)],
            "reference_quantile": scores / 2,
            "reference_count": torch.full((4,), 4.0),
            "target": torch.tensor([0.25, 0.75]).expand(4, 2),
            "draw": torch.tensor([0.3, 0.9, 0.5, 0.1]),
        }
        batch = Batch(sides, torch.ones(4), thumbs, scores, torch.tensor(0.1), (0, 0, 1, 1), columns)
        values = ", ".join(f"{name}={value}" for name, value in self.arguments.items())
        what = f"the loss {self.loss.name}" + (f" with {values}" if values else "")
        try:
            objective = self(replace(batch, running=self.running(batch, None)), [8] * len(self.terms))
            slopes = torch.autograd.grad(objective, reward)[0] if objective.requires_grad else None
        except Exception as error:
            raise ConfigError(
                f"{what} fails on four made-up rows: {type(error).__name__}: {error}. See `prospect losses "
                f"{self.loss.name}` for what its arguments mean"
            ) from error
        if slopes is None:
            raise ConfigError(f"{what} does not depend on the policy's log-probs: nothing would be learnt")
        if not (objective.isfinite() and slopes.isfinite().all()):
            raise ConfigError(
                f"{what} is {objective.item():g} on four made-up rows, its gradient {slopes.tolist()}: choose "
                "arguments that keep both finite"
            )


def step_metrics(totals: list[float], *, saturates: bool = True) -> dict[str, Any]:
    """A step's metrics from its SUMS: means over its rows on all ranks; rewards in beta * nats. A step without a
    decided row has no accuracy; a loss that is no logistic one of each row need not saturate."""
    s = dict(zip(SUMS, totals, strict=True))
    metrics: dict[str, Any] = {"loss": s["objective"]}
    for side in ("desirable", "undesirable"):
        if s[side]:
            metrics[f"reward_{side}"] = s[f"reward_{side}"] / s[side]
    if s["desirable"] and s["undesirable"]:
        metrics["margin"] = metrics["reward_desirable"] - metrics["reward_undesirable"]
    if s["judged"] and saturates:
        metrics["saturated"] = s["saturated"] / s["judged"]
    if s["decided"]:
        metrics["accuracy"] = s["correct"] / s["judged"]
    return metrics
