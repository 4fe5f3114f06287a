"""Everything that the loop reads, and the one way to compute a micro-batch of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from prospect.data.dataset import Dataset
from prospect.data.schedule import Schedule
from prospect.engine.device import release, within_memory
from prospect.engine.forward import on_trees
from prospect.engine.policy import Policy
from prospect.engine.reference import LiveReference
from prospect.errors import ModelError
from prospect.losses.modifiers import Motion
from prospect.losses.registry import Loss, ReferencePoint, bound
from prospect.training import ranks
from prospect.training.batch import Micro, trees_of
from prospect.training.config import TrainConfig
from prospect.training.inputs import (
    Reference,
    Tokens,
    compute,
    compute_with,
)
from prospect.training.objective import Objective
from prospect.training.runlog import RunLog

NO_GRAD_FACTOR = {"cuda": 4}
"""A pass without gradients holds no activations, so its micro-batches may be this much larger. On a CPU
that buys little or nothing (`python -m benchmarks.micro --only reference`) and takes memory."""


@dataclass
class Job:
    """A run that is ready to start.

    `reference` is None where the loss needs none: a table, or `live` where the reference moves. `live` is the
    reference as weights, where something asks what no table knows. `rounding` is how many nats of an answer's log-ratio
    say nothing: preflight raises it to what it measures. `measure` returns the held-out figures, `sample`
    keeps a few answers for the report, both given the step.
    """

    policy: Policy
    dataset: Dataset
    schedule: Schedule
    loss: Loss
    arguments: dict[str, Any]
    point: ReferencePoint | None
    reference: Reference | None
    config: TrainConfig
    log: RunLog
    checkpoints: Path
    context: int
    token_budget: int
    learning_rate: float
    rounding: float
    live: LiveReference | None = None
    measure: Callable[[int], dict[str, float]] | None = None
    sample: Callable[[int], None] | None = None

    @property
    def beta(self) -> float:
        """What turns a log-ratio into an implied reward."""
        return float(self.arguments.get("beta", self.arguments.get("tau", 1.0)))

    @property
    def no_grad_budget(self) -> int:
        """Tokens per micro-batch of a pass without gradients."""
        return self.token_budget * NO_GRAD_FACTOR.get(self.policy.device.type, 1)

    @property
    def needs_live(self) -> bool:
        """Whether the reference must be there as weights."""
        return self.loss.motion is not None or (self.point is not None and self.point.live)

    @cached_property
    def motion(self) -> Motion | None:
        """How the reference moves, if it does."""
        return None if self.loss.motion is None else bound(self.loss.motion, self.arguments)()

    @cached_property
    def objective(self) -> Objective:
        """The loss with its arguments."""
        return Objective(self.loss, self.arguments)

    def compute(self, micro: Micro, reference: Reference | None = None) -> Tokens:
        """The engine's findings on a micro-batch, against the run's reference or another one."""
        want_p2 = "token_sum_p2" in self.loss.reads
        return compute(self.policy, micro, reference or self.reference, sum_p2=want_p2, value=self.loss.value_head)

    def compute_with(self, micro: Micro, more: Micro) -> tuple[Tokens, Tokens]:
        """The same, and without gradient of `more`, other completions of the same trees, whose prompts are not computed
        again. Both must be what the engine `remembers`."""
        place = {tree: k for k, tree in enumerate(trees_of(self.dataset, micro))}
        where = [place[tree] for tree in trees_of(self.dataset, more)]
        want_p2 = "token_sum_p2" in self.loss.reads
        return compute_with(self.policy, micro, more, where, self.reference, sum_p2=want_p2, value=self.loss.value_head)

    def remembers(self, micro: Micro) -> bool:
        """Whether the engine can score further completions of these prompts without computing them again."""
        return self.policy.chunked_head and on_trees(self.policy, micro.trees)

    def fitting(self, work: Callable[[], Tensor]) -> Tensor:
        """The result of `work`; where memory runs out on any rank, all halve the token budget and do it
        again."""
        while True:
            result = self.attempt(work)
            if result is not None:
                return result

    def attempt(self, work: Callable[[], Tensor]) -> Tensor | None:
        """The result of `work`, None where memory has run out on any rank: then no rank has a gradient, and all have
        half the token budget."""
        result = within_memory(work)
        if not ranks.any_rank(result is None, self.policy.device):
            return result
        for _, p in self.policy.trainable():
            p.grad = None
        release(self.policy.device)
        if self.no_grad_budget < 64:  # the larger of the two
            raise ModelError("out of memory even with one row at a time: use --lora, --max-length or a smaller model")
        self.token_budget //= 2
        self.log.say(f"out of memory: micro-batches of {self.token_budget} tokens from here on", warning=True)
        return None
