"""THE loop. Read it top to bottom: preflight, then for each step

    z0 -> micro-batches forward and backward with global normalisers -> gradients summed over ranks once -> finite? ->
    clip -> optimizer step -> log -> checkpoint

It knows no loss by name: a row of the loss table says what to compute. It imports no leaf: evaluation and samples
come in as a callback.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from prospect.data.schedule import Step
from prospect.engine.checks import nan_source, nonfinite_tensors
from prospect.engine.device import COMPUTED_IN, matmul_peak
from prospect.errors import Interrupted, ModelError, NonFiniteError
from prospect.training import checkpoint, ranks
from prospect.training.batch import cut_step
from prospect.training.objective import step_metrics
from prospect.training.optimizer import learning_rate, make_optimizer, reserve
from prospect.training.runlog import progress_line
from prospect.training.step import Job, step_gradient

SECOND_INTERRUPT = 1.0
"""Seconds after which a second Ctrl-C is meant as one. torchrun passes on the Ctrl-C that its workers have had, too."""
FALLING_STEPS, FALLING_REWARD = 20, -1.0
"""A desirable answers' reward that stays below this for so many steps: the sign of too high a learning rate (arXiv
2402.01306 section 4.2)."""


def fit(job: Job, stop: Callable[[], bool] = lambda: False) -> None:
    """Train from the newest checkpoint, or from the start, to the end of the schedule.

    Raises NonFiniteError with the step's row ids, Interrupted (after saving) when `stop()` says so, RunError on a
    full disk.
    """
    parameters = job.policy.trainable()
    optimizer = make_optimizer(parameters, job.config)
    state: dict[str, Any] = {"step": 0, "seconds": 0.0, "best": None, "token_budget": job.token_budget}
    steps, loss = job.schedule.steps, job.objective.loss
    states: dict[str, Tensor] = {}
    last = checkpoint.latest(job.checkpoints) if job.config.resume else None
    if last is not None:
        state, states, earlier = checkpoint.restore(last, parameters, optimizer)
        states = {name: value.to(job.policy.device) for name, value in states.items()}
        job.token_budget = state["token_budget"]
        if job.live is not None and earlier is not None:
            job.live.restore(earlier)
    elif job.policy.device.type == "cpu":
        reserve(optimizer)
    job.log.rewind(state["step"])
    rates = [learning_rate(step.index, len(steps), job.learning_rate, job.config) for step in steps]
    head_rate = (job.config.value_learning_rate or loss.value_learning_rate or job.learning_rate) / job.learning_rate
    peak = matmul_peak(job.policy.device, COMPUTED_IN[job.policy.precision])
    job.log.log("device", step=0, matmul_flops_per_second=peak)
    started = time.perf_counter() - state["seconds"]
    with job.log.bar("train", len(steps), state["step"]) as bar:
        for step in steps[state["step"] :]:
            began, flops = time.perf_counter(), job.policy.flops
            z0, totals = step_gradient(
                job,
                step,
                states.get("reference_point"),
                running=states.get("running"),
                at_reference=_at_reference(job, step.index),
            )
            norm = _norm(parameters)
            # The one place of a step that waits for the device: no step is taken on what is not finite.
            metrics = _numbers(z0.metrics | {"totals": totals, "grad_norm": norm})
            metrics = step_metrics(metrics.pop("totals"), saturates=not job.objective.groups) | metrics
            if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])):
                raise _not_finite(job, step, metrics["loss"], metrics["grad_norm"])
            if metrics["grad_norm"] > job.config.clip:
                torch.nn.utils.clip_grads_with_norm_([p for _, p in parameters], job.config.clip, norm, foreach=True)
            for group in optimizer.param_groups:
                group["lr"] = rates[step.index - 1] * (head_rate if group.get("value_head") else 1.0)
            _move_reference(job, step.index, behind=True)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            _move_reference(job, step.index, behind=False)
            states = z0.states

            now, tokens = time.perf_counter(), _tokens(job, step)
            metrics |= {"lr": rates[step.index - 1], "tokens": tokens}
            metrics |= {"tokens_per_second": tokens / (now - began), "seconds": now - started}
            metrics |= {"utilisation": (job.policy.flops - flops) / (now - began) / peak}
            job.log.log("step", step=step.index, epoch=step.epoch, rows=len(step.rows), **metrics)
            bar(step.index, progress_line(metrics))
            _warn_of_falling_rewards(job)

            ended, halted = step.index == len(steps), _any_rank(job, stop())
            if _due(step.index, job.config.eval_every) and not ended:
                state["best"] = _evaluate(job, step.index, state["best"])
            if ended or halted or _due(step.index, job.config.save_every) or _epoch_ends(job, step):
                state |= {"seconds": time.perf_counter() - started, "token_budget": job.token_budget}
                _save(job, step, optimizer, state, states)
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
    if job.reference is None or not _at_reference(job, 1):
        return

    @torch.no_grad()
    def log_ratios() -> Tensor:
        """(2, N) |r| and tokens of the first step's answers."""
        (micro_batches,) = cut_step(job.dataset, job.schedule.steps[0].rows, 1, job.token_budget)
        completions = [job.compute(micro_batch.trees) for micro_batch in micro_batches]
        columns = [torch.stack([part.log_ratio.abs(), part.length]) for part in completions]
        return torch.cat(columns, dim=1).double().cpu()

    r, lengths = job.fitting(lambda: job.on_all_ranks(log_ratios))
    worst, mean = float((r / lengths).max()), float(r.sum() / lengths.sum())
    job.rounding = max(job.rounding, 2 * float(r.max()))
    job.log.log("preflight", step=0, noise_max=worst, noise_mean=mean)
    if not (mean <= 5e-3 if job.policy.precision == "bf16" else worst <= 1e-4):
        raise ModelError(
            f"the policy should start as the reference, but its log-ratios are not 0: {mean:.2g} nats per token on "
            f"average, {worst:.2g} at most. Choose --engine padded or --precision fp32, or "
            "report the model's architecture"
        )


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Within, Ctrl-C, SIGTERM and SIGHUP raise a flag, which the yielded function reads; another Ctrl-C a second later
    stops at once.

    In any other than the main thread Python delivers no signals, and the flag stays down. SIGHUP that somebody ignores,
    as nohup does, stays ignored.
    """
    flag, first = threading.Event(), [0.0]

    def note(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and flag.is_set() and now - first[0] >= SECOND_INTERRUPT:
            raise KeyboardInterrupt
        if not flag.is_set():
            first[0] = now
        flag.set()

    names = ("SIGINT", "SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {n: signal.signal(n, note) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}
    try:
        yield flag.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _any_rank(job: Job, flag: bool) -> bool:
    return flag if job.ranks == 1 else ranks.any_rank(flag, job.policy.device)


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    """The same with numbers in place of tensors, a vector becoming a list: all in one copy from the device."""
    tensors = {name: value.detach().double() for name, value in values.items() if isinstance(value, Tensor)}
    numbers = iter(torch.cat([value.reshape(-1) for value in tensors.values()]).tolist())
    return values | {
        name: next(numbers) if value.ndim == 0 else [next(numbers) for _ in range(len(value))]
        for name, value in tensors.items()
    }


def _save(
    job: Job, step: Step, optimizer: torch.optim.Optimizer, state: dict[str, Any], states: dict[str, Tensor]
) -> None:
    """A checkpoint, by the first rank."""
    if job.rank == 0:
        with job.log.bar("saving the checkpoint"):
            checkpoint.save(
                job.checkpoints,
                step.index,
                job.policy.trainable(),
                optimizer,
                state,
                states=states,
                live=job.live.weights if job.live is not None and job.objective.motion is not None else None,
                keep=job.config.keep,
            )


def _at_reference(job: Job, step: int) -> bool:
    """Whether the policy is the reference as this step begins, so that every r is 0 up to rounding: at the start, and
    where the reference has just become the policy."""
    if step == 1:
        return job.config.reference is None
    motion = job.objective.motion
    return motion is not None and motion.mix == 1.0 and not motion.behind and (step - 1) % motion.every == 0


def _norm(parameters: list[tuple[str, torch.nn.Parameter]]) -> Tensor:
    """Of all gradients together. Here, so that nobody holds them when the next step makes its own."""
    return torch.nn.utils.get_total_norm([p.grad for _, p in parameters if p.grad is not None], foreach=True)


def _move_reference(job: Job, step: int, *, behind: bool) -> None:
    """Before and after the optimizer's step, a moving reference follows the policy where it is due."""
    motion = job.objective.motion
    if job.live is not None and motion is not None and motion.behind == behind and step % motion.every == 0:
        job.live.follow(motion.mix)


def _tokens(job: Job, step: Step) -> int:
    """Real tokens of a step: each prompt once per tree, each row's completions."""
    trees = {job.dataset.examples[i].tree for i in step.rows}
    prompts = sum(len(job.dataset.trees[tree].prompt) for tree in trees)
    return prompts + sum(job.dataset.length(job.dataset.examples[i]) for i in step.rows)


def _not_finite(job: Job, step: Step, loss: float, norm: float) -> NonFiniteError:
    """Nothing hides a NaN: the step is not taken, and the rows are named."""
    names = [job.dataset.examples[i].id for i in step.rows]
    last = checkpoint.latest(job.checkpoints)
    return NonFiniteError(
        f"step {step.index}: the loss is {loss} and the gradient norm {norm}. Its rows: {', '.join(names[:8])}"
        f"{f' and {len(names) - 8} more' if len(names) > 8 else ''}. {_remedy(job, step)}"
        + (f"; the last good checkpoint is {last}" if last else ""),
        names,
    )


def _remedy(job: Job, step: Step) -> str:
    """What to do about a step that is not finite. No step has changed the model before the first."""
    if nonfinite_tensors(job.policy.model):
        return f"The model has {nan_source(job.policy)}. Take an intact copy of the start model"
    if step.index == 1:
        return (
            "The model is still the start model, so the learning rate had no part in it: look at those rows and at the "
            "loss's arguments, or use --precision fp32"
        )
    return "Lower --learning-rate, use --precision fp32, or look at those rows"


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _epoch_ends(job: Job, step: Step) -> bool:
    steps = job.schedule.steps
    return not job.config.save_every and step.index < len(steps) and steps[step.index].epoch != step.epoch


def _warn_of_falling_rewards(job: Job) -> None:
    """Say once when the desirable answers' reward, too, stays below 0."""
    lines = (m.get("reward_desirable") for m in job.log.metrics[-80:] if m["event"] == "step")
    rewards = [reward for reward in lines if reward is not None][-FALLING_STEPS:]
    falling = len(rewards) == FALLING_STEPS and max(rewards) < FALLING_REWARD
    if falling and not any("learning rate" in m.get("message", "") for m in job.log.metrics):
        job.log.say(
            "the rewards of desirable and undesirable answers both fall, often the sign of too high a learning rate: "
            "the report weighs it against held-out feedback",
            warning=True,
        )


def _evaluate(job: Job, step: int, best: float | None) -> float | None:
    """Measure, and keep the weights where they are the best so far. Returns the best AUC."""
    figures = job.evaluate(step) if job.evaluate is not None else {}
    if figures:
        job.log.log("eval", step=step, **figures)
    score = figures.get("auc")
    if job.config.keep_best and score is not None and (best is None or score > best):
        if job.rank == 0:
            checkpoint.save_best(job.checkpoints, job.policy.trainable(), {"step": step, "auc": score})
        return score
    return best


def restore_best(job: Job, end: int) -> bool:
    """Put the best evaluated weights back, unless the last ones are as good. True if they were."""
    best = job.checkpoints / "best"
    if not job.config.keep_best or not best.exists():
        return False
    state = checkpoint.read_state(best)
    if state is None:
        job.log.say(f"{best} is damaged: the model of the last step is kept", warning=True)
        return False
    evaluations = (line for line in job.log.metrics if (line["event"], line.get("step")) == ("eval", end))
    last = next((line.get("auc") for line in evaluations), None)
    if last is not None and last >= state["auc"]:
        return False
    checkpoint.restore_weights(best, job.policy.trainable())
    job.log.say(f"kept the model of step {state['step']}, whose held-out AUC {state['auc']:.3f} was the best")
    return True
