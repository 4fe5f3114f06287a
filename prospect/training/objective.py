"""From a row of the loss table to numbers: the objective of some rows of a step.

sum over terms of  coefficient * sum(weight * loss) / count of the term's unit in the whole step
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from prospect.data.dataset import Dataset
from prospect.errors import ConfigError
from prospect.losses.numerics import segment_sum
from prospect.losses.registry import Loss, Modifier, Part, Term, bound
from prospect.training.inputs import Batch, Tokens

Function = Callable[..., Tensor]
ROW_INPUTS = {"desirable", "score", "margin", "z0"}


class Objective:
    """A loss with its arguments filled in. `counts` of a step come from `count`, a batch's share from calling it."""

    def __init__(self, loss: Loss, arguments: Mapping[str, Any]) -> None:
        self.loss, self.arguments = loss, dict(arguments)
        self.terms: list[tuple[Term, Function]] = [(term, bound(term.function, arguments)) for term in loss.terms]
        modifiers = [(m, bound(m.function, arguments)) for m in loss.modifiers if m.changes != "reference"]
        self.changes: list[tuple[Modifier, Function]] = [m for m in modifiers if m[0].changes != "weight"]
        self.weights: list[tuple[Modifier, Function]] = [m for m in modifiers if m[0].changes == "weight"]

    def count(self, dataset: Dataset, rows: Iterable[int]) -> list[int]:
        """The whole step's examples, pairs or tokens that each term is about, on all ranks. Weights do not count."""
        found = []
        for term, _ in self.terms:
            mine = [dataset.examples[i] for i in rows]
            if self.loss.view != "pairs":
                mine = [row for row in mine if self._wants(term.rows, bool(row.desirable))]
            sides = self._sides(term.rows)
            tokens = sum(len(dataset.completion(row, side)) for row in mine for side in sides)
            found.append(tokens if term.unit == "tokens" else len(mine))
        return found

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

    def rehearse(self) -> None:
        """Compute four made-up rows and their gradient, so that arguments or a function that cannot work are told
        before a model is loaded. Raises ConfigError."""
        reward = torch.tensor([0.0, 0.4, -0.5, 1.2], requires_grad=True)
        lengths = torch.tensor([2, 1, 3, 2])
        starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        reference = torch.linspace(-3.0, -0.2, 8)

        def side(sign: float) -> Tokens:
            logp = reference + (sign * reward / lengths).repeat_interleave(lengths)
            return Tokens(logp, starts, reference, logp.detach().exp().square(), logp * 0)

        sides = (side(1.0), side(-0.5)) if self.loss.view == "pairs" else (side(1.0),)
        scores, thumbs = torch.tensor([1.0, 0.25, 0.5, 2.0]), (True, False, False, True)
        batch = Batch(sides, torch.ones(4), thumbs, scores, torch.tensor(0.1))
        values = ", ".join(f"{name}={value}" for name, value in self.arguments.items())
        what = f"the loss {self.loss.name}" + (f" with {values}" if values else "")
        try:
            objective = self(batch, [8] * len(self.terms))
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

    def _term(self, term: Term, function: Function, batch: Batch) -> Tensor:
        """sum(weight * loss) of one term."""
        sides = self._sides(term.rows)
        if term.rows != "all" and self.loss.view in ("binary", "scores"):
            batch = batch.take([k for k, thumb in enumerate(batch.thumbs) if self._wants(term.rows, thumb)])
        arguments: list[Tensor] = []
        for name in term.reads:
            every = (0,) if name in ROW_INPUTS else sides
            arguments += [self._input(name, batch, side) for side in every]
        loss = function(*arguments)
        weight = batch.weight
        if term.unit == "tokens":
            assert len(sides) == 1, "a loss per token is about one answer of a pair"
            side = batch.sides[sides[0]]
            weight = weight.repeat_interleave(side.read("length"), output_size=len(side.token_logp))
        return (weight * loss).sum()

    def _input(self, name: str, batch: Batch, side: int) -> Tensor:
        """An input, with the modifiers' changes. A change to token_log_ratio shows in log_ratio too."""
        if name in ROW_INPUTS:
            found: Tensor | None = batch.score if name == "margin" else getattr(batch, name)
            assert found is not None, "what a loss reads was computed for it"
            return found
        tokens = batch.sides[side]
        if name == "log_ratio" and any(change.changes == "token_log_ratio" for change, _ in self.changes):
            value = segment_sum(self._input("token_log_ratio", batch, side), tokens.read("offsets"))
        else:
            value = tokens.read(name)
        for change, function in self.changes:
            if change.changes == name:
                changed = function(value, *(tokens.read(other) for other in change.reads))
                value = changed if change.rows == "all" else self._where(change.rows, batch, side, changed, value)
        return value

    def _where(self, part: Part, batch: Batch, side: int, changed: Tensor, value: Tensor) -> Tensor:
        if self.loss.view == "pairs":
            return changed if side in self._sides(part) else value
        return torch.where(batch.desirable if part == "desirable" else ~batch.desirable, changed, value)

    def _sides(self, part: Part) -> tuple[int, ...]:
        if self.loss.view != "pairs":
            return (0,)
        return {"all": (0, 1), "desirable": (0,), "undesirable": (1,)}[part]

    def _wants(self, part: Part, desirable: bool) -> bool:
        return part == "all" or self.loss.view == "text" or desirable == (part == "desirable")
