"""One run of Prospect in a process of its own: python -m benchmarks.side_prospect JOB.json

A job names a model folder, a file of rows, a loss, a batch size and where marks go. "timed" lives through the first
epoch; "check" computes the gradient of one step under a reference that differs from the policy, and writes it down.
"switch" names what is off meanwhile (switches.py).
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file

from benchmarks.marks import Facts, Marks
from benchmarks.switches import switched
from prospect.data.dataset import Dataset
from prospect.data.schedule import Step
from prospect.feedback.load import load as load_feedback
from prospect.losses import registry
from prospect.training import loop, process, setup
from prospect.training.config import TrainConfig, from_dict
from prospect.training.memory import settle_budget
from prospect.training.runlog import RunLog
from prospect.training.step import Job, step_gradient


class ToldLog(RunLog):
    """Turns what a run logs into marks."""

    def __init__(self, folder: Path, marks: Marks, dataset: Dataset) -> None:
        super().__init__(folder)
        self.marks, self.dataset, self.steps = marks, dataset, ()

    steps: tuple[Step, ...]

    def log(self, event: str, **values: Any) -> None:
        super().log(event, **values)
        if event == "step":
            rows = self.steps[values["step"] - 1].rows
            kept = {k: values[k] for k in ("loss", "grad_norm", "z0", "utilisation") if values.get(k) is not None}
            self.marks("step", rows=len(rows), tokens=real_tokens(self.dataset, rows), **kept)
        elif event == "reference":
            self.marks("reference", forwards=values["forwards"])
        elif event == "preflight":
            self.marks("preflight")


def real_tokens(dataset: Dataset, rows: Sequence[int]) -> int:
    """Prompt plus answers of each row; neither padding nor partners, whatever is computed once for several rows."""
    return sum(len(dataset.trees[dataset.examples[i].tree].prompt) + dataset.length(dataset.examples[i]) for i in rows)


def config_of(job: Facts) -> TrainConfig:
    """Defaults, but for what both sides share and what has no place in a measurement."""
    fixed = {"model": job["model"], "data": job["data"], "out": job["out"], "loss": job["loss"], "seed": job["seed"]}
    fixed |= {"batch_size": job["batch"], "precision": job["precision"], "samples": 0}
    fixed |= {"device": job.get("device", "cpu")}
    fixed |= {"max_length": job["context"], "cache": job["cache"], "weights": "none"}
    return from_dict(fixed | job.get("options", {}))


def prepared(job: Facts, marks: Marks) -> Job:
    """Model in memory, clock started, rows tokenised and planned."""
    config = config_of(job)
    loss = registry.find(config.loss)
    torch.manual_seed(config.seed)
    policy = setup.load_policy(config, config.model, frozen=False)
    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    marks.loaded(
        threads=torch.get_num_threads(),
        pid=os.getpid(),
        precision=policy.precision,
        versions={name: importlib.import_module(name).__version__ for name in ("torch", "transformers", "prospect")},
    )
    training, _ = setup.rows(config, loss, load_feedback(config.data), None, policy)
    log = ToldLog(folder, marks, training)
    found = setup.prepare(config, loss, policy, training, log)
    log.steps = found.schedule.steps
    marks("prepared", rows=len(training.examples), tokens=real_tokens(training, range(len(training.examples))))
    return found


def with_reference(job: Job) -> Job:
    """The table filled, as a run does it."""
    if not job.objective.loss.needs_reference:
        return job
    return replace(job, reference=setup.reference_table(job))


def timed(job: Facts, marks: Marks) -> None:
    """The first epoch, after loading: tokenise, plan, reference pass, preflight, token budget, steps."""
    ready = with_reference(prepared(job, marks))
    ready.policy.checkpoint_activations(setup.checkpointing(ready.config, ready.policy))
    loop.preflight(ready)
    settle_budget(ready)
    with mock.patch("prospect.training.checkpoint.save"):  # no side writes any, and its 18 GB take 40 s
        loop.fit(ready)
    marks("trained", budget=ready.token_budget)


def check(job: Facts, marks: Marks) -> None:
    """One step, not taken: its loss, z0 and gradient. The mismatched answers are those of TRL: the row before."""
    ready = prepared(job, marks)
    rows = tuple(range(len(ready.dataset.examples)))
    if ready.estimator is not None:
        before = tuple((i - 1) % len(rows) for i in rows)
        ready = replace(ready, schedule=replace(ready.schedule, partners=before))
    ready = with_reference(ready)
    step = Step(1, 0, rows)
    z0, totals = step_gradient(ready, step, None)
    grads = {name: p.grad.float().contiguous() for name, p in ready.policy.trainable() if p.grad is not None}
    norm = float(torch.cat([g.flatten().double() for g in grads.values()]).norm())
    save_file(grads, job["gradient"])
    told = {key: float(z0.metrics[key]) for key in ("z0", "z0_raw") if key in z0.metrics}
    marks("checked", loss=float(totals[0]), grad_norm=norm, **told)


def run(job: Facts) -> None:
    """Do a job."""
    marks = Marks(Path(job["marks"]), job["name"])
    with switched(job.get("switch", "")):
        process.settle()
        {"timed": timed, "check": check}[job["mode"]](job, marks)


def main() -> None:
    """Read the job and do it."""
    run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
