"""What the loop reads, and how a step computes: the engine's results, memory that runs out, sums over ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from prospect.data.dataset import Dataset
from prospect.data.schedule import Schedule
from prospect.data.textids import Ids
from prospect.engine.device import is_out_of_memory, release
from prospect.engine.forward import on_trees
from prospect.engine.packing import Branches
from prospect.engine.policy import Policy
from prospect.engine.reference import LiveReference
from prospect.errors import ModelError
from prospect.losses.registry import ReferencePoint
from prospect.training import ranks
from prospect.training.batch import Completions, Reference, compute, compute_with
from prospect.training.config import TrainConfig
from prospect.training.objective import Objective
from prospect.training.runlog import RunLog

Result = TypeVar("Result")

NO_GRAD_FACTOR = {"cuda": 4}
"""A pass without gradients holds no activations, so its micro-batches may be this much larger. On a CPU
that buys little or nothing (`python -m benchmarks.micro --only reference`) and takes memory."""


@dataclass
class Job:
    """A run that is ready to start.

    `estimator` is that of z0. `reference` is None where the loss needs none: a table, or `live` where the reference
    moves. `live` is the reference as weights, where something asks what no table knows. `learning_rate` is the highest.
    `rounding` is how many nats of an answer's log-ratio say nothing: preflight raises it to what it measures.
    `evaluate(step)` samples answers and returns the held-out figures. This process is number `rank` of `ranks`.
    """

    policy: Policy
    dataset: Dataset
    schedule: Schedule
    objective: Objective
    estimator: ReferencePoint | None
    config: TrainConfig
    log: RunLog
    token_budget: int
    learning_rate: float
    rounding: float
    reference: Reference | None = None
    live: LiveReference | None = None
    evaluate: Callable[[int], dict[str, float]] | None = None
    rank: int = 0
    ranks: int = 1

    @property
    def checkpoints(self) -> Path:
        """Their folder."""
        return self.log.folder / "checkpoints"

    @property
    def no_grad_budget(self) -> int:
        """Tokens per micro-batch of a pass without gradients."""
        return self.token_budget * NO_GRAD_FACTOR.get(self.policy.device.type, 1)

    def compute(self, trees: Sequence[Branches], reference: Reference | None = None) -> Completions:
        """The completions of trees, against the run's reference or another one."""
        return compute(self.policy, trees, reference or self.reference, **self._columns())

    def compute_with(
        self, trees: Sequence[Branches], further: Sequence[Sequence[Ids]]
    ) -> tuple[Completions, Completions]:
        """The same and, without gradient, `further[k]`: other completions of the prompt of tree k, which is not
        computed again. The engine must be able to (`shares_prompts`)."""
        return compute_with(self.policy, trees, further, self.reference, **self._columns())

    def _columns(self) -> dict[str, bool]:
        """The columns of completions that the loss reads beside the log-probs."""
        return {"sum_p2": self.objective.reads_sum_p2, "value": self.objective.reads_value}

    def shares_prompts(self, trees: Sequence[Branches]) -> bool:
        """Whether the engine can score further completions of these prompts without computing them again."""
        return self.policy.chunked_head and on_trees(self.policy, trees)

    def total(self, values: Tensor) -> Tensor:
        """The sum over all ranks (in place)."""
        return values if self.ranks == 1 else ranks.total(values)

    def fitting(self, work: Callable[[], Result]) -> Result:
        """The result of `work`; where memory runs out, the token budget is halved and all of it begins again.

        With several ranks, `work` must do all that may fail so between two messages within `on_all_ranks`.
        """
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            self._halve()  # behind the handler: the error holds what is to be released

    def on_all_ranks(self, work: Callable[[], Result]) -> Result:
        """The result of `work`. Where memory runs out on one rank, it has run out on all: none waits for a message that
        another will not send."""
        return work() if self.ranks == 1 else ranks.fail_together(work, self.policy.device)

    def _halve(self) -> None:
        for _, p in self.policy.trainable():
            p.grad = None
        release(self.policy.device)
        if self.no_grad_budget < 64:  # the larger of the two
            raise ModelError("out of memory even with one row at a time: use --lora, --max-length or a smaller model")
        self.token_budget //= 2
        self.log.say(f"out of memory: micro-batches of {self.token_budget} tokens from here on", warning=True)
