"""THE loop. Read it top to bottom: preflight, then for each step

    z0 -> micro-batches forward and backward with global normalisers -> gradients summed over ranks once -> finite? ->
    clip -> optimizer step -> log -> checkpoint

It knows no loss by name: a row of the loss table says what to compute. It imports no leaf: evaluation and samples
come in as callbacks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prospect.corpus import Corpus
from prospect.engine.models import Policy
from prospect.engine.reference import ReferenceTable
from prospect.errors import Interrupted, ModelError, NonFiniteError
from prospect.losses.reference_point import Statistics
from prospect.losses.table import PARTNER_FREE, Loss, estimator
from prospect.schedule import Schedule, Step
from prospect.train import checkpoint, figures, ranks
from prospect.train.batch import Computed, compute, log_ratios, matched, mismatched, read, token_positions
from prospect.train.config import TrainConfig
from prospect.train.optimizer import learning_rate, make_optimizer
from prospect.train.runlog import RunLog

NO_GRAD_FACTOR = 4
"""A pass without gradients holds no activations, so its micro-batches may be this much larger."""


@dataclass
class Job:
    """Everything that the loop reads. `table` is None where the loss needs no reference; `measure` returns the
    held-out figures, `sample` keeps a few answers for the report, both given the step."""

    policy: Policy
    corpus: Corpus
    schedule: Schedule
    loss: Loss
    arguments: dict[str, Any]
    reference_point: str | None
    table: ReferenceTable | None
    config: TrainConfig
    log: RunLog
    checkpoints: Path
    context: int
    token_budget: int
    learning_rate: float
    measure: Callable[[int], dict[str, float]] | None = None
    sample: Callable[[int], None] | None = None

    @property
    def beta(self) -> float:
        """What turns a log-ratio into an implied reward."""
        return float(self.arguments.get("beta", 1.0))

    @property
    def partner_pass(self) -> bool:
        """Whether z0 needs the partner rows' log-ratios."""
        return self.reference_point is not None and self.reference_point not in PARTNER_FREE


def fit(job: Job, stop: Callable[[], bool] = lambda: False) -> None:
    """Train from the newest checkpoint, or from the start, to the end of the schedule.

    Raises NonFiniteError with the step's row ids, Interrupted (after saving) when `stop()` says so, RunError on a
    full disk.
    """
    parameters = job.policy.trainable()
    optimizer = make_optimizer(parameters, job.config)
    state: dict[str, Any] = {"step": 0, "seconds": 0.0, "best": None, "token_budget": job.token_budget}
    z0_state, steps = None, job.schedule.steps
    last = checkpoint.latest(job.checkpoints) if job.config.resume else None
    if last is not None:
        state, z0_state = checkpoint.restore(last, parameters, optimizer)
        job.token_budget = state["token_budget"]
    job.log.rewind(state["step"])
    started = time.perf_counter() - state["seconds"]
    with job.log.bar("train", len(steps), state["step"]) as bar:
        for step in steps[state["step"] :]:
            began = time.perf_counter()
            z0, z0_state, found = reference_point(job, step, z0_state)
            totals = gradient(job, step, z0)
            norm = float(torch.nn.utils.clip_grad_norm_([p for _, p in parameters], job.config.clip))
            _require_finite(job, step, totals[0], norm)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step.index, len(steps), job.learning_rate, job.config)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            tokens = _tokens(job, step)
            found |= figures.means(totals) | {
                "grad_norm": norm,
                "lr": optimizer.param_groups[0]["lr"],
                "tokens": tokens,
            }
            found |= {
                "tokens_per_second": tokens / (time.perf_counter() - began),
                "seconds": time.perf_counter() - started,
            }
            job.log.log("step", step=step.index, epoch=step.epoch, rows=len(step.rows), **found)
            bar(step.index, figures.line(found))
            _guard(job)

            ended, halted = step.index == len(steps), ranks.any_rank(stop(), job.policy.device)
            if _due(step.index, job.config.eval_every) and not ended:
                state["best"] = _evaluate(job, step.index, state["best"])
            if ended or halted or _due(step.index, job.config.save_every) or _epoch_ends(job, step):
                state |= {"seconds": time.perf_counter() - started, "token_budget": job.token_budget}
                if ranks.rank() == 0:
                    checkpoint.save(
                        job.checkpoints,
                        step.index,
                        parameters,
                        optimizer,
                        state,
                        reference_point=z0_state,
                        keep=job.config.keep,
                    )
            if halted and not ended:
                raise Interrupted(f"stopped after step {step.index} of {len(steps)}; the checkpoint is saved")


def preflight(job: Job) -> None:
    """Before the first step: something is trainable, and where the policy is the reference, every r is 0 up to
    rounding.

    Raises ModelError. The noise floor of r is logged: in bf16, packing alone moves it.
    """
    if not job.policy.trainable():
        raise ModelError(
            "nothing in this model is trainable: every parameter is frozen. Train the full model or add --lora r=16"
        )
    if job.table is None or job.config.reference is not None:
        return
    worst, total, tokens = 0.0, 0.0, 0
    with torch.no_grad():
        for part in matched(job.corpus, job.schedule.steps[0].rows, 1, job.token_budget)[0]:
            found = compute(job.policy, part, job.table)
            assert found.log_ratio is not None
            lengths = found.output.offsets.diff().to(found.log_ratio.device)
            worst = max(worst, float((found.log_ratio.abs() / lengths).max()))
            total, tokens = total + float(found.log_ratio.abs().sum()), tokens + int(lengths.sum())
    mean = total / tokens
    job.log.log("preflight", step=0, noise_max=worst, noise_mean=mean)
    if (mean > 5e-3) if job.policy.precision == "bf16" else (worst > 1e-4):
        raise ModelError(
            f"the policy should start as the reference, but its log-ratios are not 0: {mean:.2g} nats per token on "
            f"average, {worst:.2g} at most. Choose --engine padded or --precision fp32, or "
            "report the model's architecture"
        )


def reference_point(job: Job, step: Step, state: Tensor | None) -> tuple[Tensor | None, Tensor | None, dict[str, Any]]:
    """z0 of a step, without gradient: sums of the partner rows' r over all micro-batches and ranks, then the estimator.

    Returns z0, the estimator's new state, and what to log.
    """
    if job.reference_point is None:
        return None, state, {}

    def partners() -> Tensor:
        """(sum of r, sum of r * r, count) on this rank."""
        total = torch.zeros(3, dtype=torch.float64, device=job.policy.device)
        budget = NO_GRAD_FACTOR * job.token_budget
        micros = mismatched(job.corpus, job.schedule.partners, step.rows, ranks.world(), budget, job.context)
        for micro in micros[ranks.rank()]:
            if micro.rows:
                r = log_ratios(compute(job.policy, micro, job.table), 0).double()
                total += torch.stack([r.sum(), (r * r).sum(), torch.ones_like(r).sum()])
        return total

    with torch.no_grad():
        total = _fitting(job, partners) if job.partner_pass else torch.zeros(3, dtype=torch.float64)
        step_sums = Statistics(*ranks.total(total).cpu())
        z0, state = estimator(job.reference_point)(step_sums, state)
    found = {"z0": float(z0.mean())}
    if job.partner_pass:
        error = float(step_sums.standard_error)
        found |= {"z0_raw": float(step_sums.mean), "z0_se": error, "z0_n": int(step_sums.count)}
    return z0.to(job.policy.device), state, found


def gradient(job: Job, step: Step, z0: Tensor | None) -> list[float]:
    """Leave the whole step's gradient, summed over the ranks, in .grad; returns the step's figures.SUMS."""
    counts = _counts(job, step)

    def mine() -> Tensor:
        total = torch.zeros(len(figures.SUMS), dtype=torch.float64, device=job.policy.device)
        for micro in matched(job.corpus, step.rows, ranks.world(), job.token_budget)[ranks.rank()]:
            found = compute(job.policy, micro, job.table)
            desirable = torch.tensor([bool(job.corpus.rows[i].desirable) for i in micro.rows], device=total.device)
            objective = objective_of(job, found, desirable, counts, z0)
            objective.backward()
            with torch.no_grad():
                total += figures.sums(found, desirable, objective.detach(), beta=job.beta, z0=z0)
        return total

    total = _fitting(job, mine)
    ranks.sum_gradients(p for _, p in job.policy.trainable())
    return [float(value) for value in ranks.total(total)]


def _fitting(job: Job, work: Callable[[], Tensor]) -> Tensor:
    """The result of `work`; where CUDA runs out of memory on any rank, all halve the token budget and do it again."""
    while True:
        result = None
        with suppress(torch.cuda.OutOfMemoryError):
            result = work()
        if not ranks.any_rank(result is None, job.policy.device):
            assert result is not None
            return result
        for _, p in job.policy.trainable():
            p.grad = None
        if job.token_budget < 64:
            raise ModelError("out of memory even with one row at a time: use --lora, --max-length or a smaller model")
        job.token_budget //= 2
        job.log.say(f"out of memory: micro-batches of {job.token_budget} tokens from here on", warning=True)


def objective_of(job: Job, found: Computed, desirable: Tensor, counts: dict[str, int], z0: Tensor | None) -> Tensor:
    """A micro-batch's share of the objective: sum over terms of coefficient * sum(weight * loss) / global count."""
    logp = found.output.token_logp
    if not found.micro.rows:
        return logp.sum() * 0.0
    rows = [job.corpus.rows[i] for i in found.micro.rows]
    weight = torch.tensor([row.weight for row in rows], dtype=logp.dtype, device=logp.device)
    objective = torch.zeros((), dtype=logp.dtype, device=logp.device)
    for term in job.loss.terms:
        function = term.load()
        mine = {name: job.arguments[name] for name in function.__kwdefaults__ or {}}
        loss = function(*read(term, found, desirable, None if z0 is None else z0.to(logp.dtype)), **mine)
        if term.unit == "tokens":
            _, offsets = token_positions(found, 0)
            loss_weight = weight.repeat_interleave(offsets.diff().to(weight.device))
        else:
            loss_weight = weight
        objective = objective + term.coefficient * (loss_weight * loss).sum() / counts[term.unit]
    return objective


def _counts(job: Job, step: Step) -> dict[str, int]:
    """How many examples, pairs and tokens the whole step has, on all ranks. Weights do not count."""
    rows = [job.corpus.rows[i] for i in step.rows]
    return {"examples": len(rows), "pairs": len(rows), "tokens": sum(len(job.corpus.completion(row)) for row in rows)}


def _tokens(job: Job, step: Step) -> int:
    """Real tokens of a step: each prompt once per tree, each row's completions."""
    trees = {job.corpus.rows[i].tree for i in step.rows}
    prompts = sum(len(job.corpus.trees[tree].prompt) for tree in trees)
    return prompts + sum(job.corpus.length(job.corpus.rows[i]) for i in step.rows)


def _require_finite(job: Job, step: Step, loss: float, norm: float) -> None:
    """Nothing hides a NaN: the step is not taken, and the rows are named."""
    if math.isfinite(loss) and math.isfinite(norm):
        return
    names = [job.corpus.rows[i].id for i in step.rows]
    last = checkpoint.latest(job.checkpoints)
    raise NonFiniteError(
        f"step {step.index}: the loss is {loss} and the gradient norm {norm}. Its rows: {', '.join(names[:8])}"
        f"{f' and {len(names) - 8} more' if len(names) > 8 else ''}. Lower --learning-rate, use --precision fp32, or "
        "look at those rows" + (f"; the last good checkpoint is {last}" if last else ""),
        names,
    )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _epoch_ends(job: Job, step: Step) -> bool:
    steps = job.schedule.steps
    return not job.config.save_every and step.index < len(steps) and steps[step.index].epoch != step.epoch


def _guard(job: Job) -> None:
    """Say once when the run shows the sign of too high a learning rate."""
    steps = [m for m in job.log.metrics[-80:] if m["event"] == "step"]
    if figures.both_fall(steps) and not any("learning rate" in m.get("message", "") for m in job.log.metrics):
        job.log.say(
            "the rewards of desirable and undesirable answers both fall: the learning rate is probably too high",
            warning=True,
        )


def _evaluate(job: Job, step: int, best: float | None) -> float | None:
    """Measure, keep the weights where they are the best so far, and take samples. Returns the best AUC."""
    if job.sample is not None:
        job.sample(step)
    found = job.measure(step) if job.measure is not None else {}
    if found:
        job.log.log("eval", step=step, **found)
    score = found.get("auc")
    if job.config.keep_best and score is not None and (best is None or score > best):
        if ranks.rank() == 0:
            checkpoint.save_best(job.checkpoints, job.policy.trainable(), {"step": step, "auc": score})
        return score
    return best
