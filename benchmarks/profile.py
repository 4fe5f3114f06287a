"""Where a step's time goes: .venv/bin/python -m benchmarks.profile [--data hh] [--loss kto] [--steps 3] [--threads 1]

Prints the operators that take the longest, and the share of each part of a step.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import workload
from benchmarks.marks import BUILD, Marks
from benchmarks.side_prospect import prepared, real_tokens, with_reference
from prospect.engine import head as logprobs
from prospect.engine import packing
from prospect.training import step as step_module
from prospect.training.batch import cut_step
from prospect.training.optimizer import make_optimizer


def main() -> None:
    """A warm-up step, timed steps by part, then one step under torch's profiler."""
    flags = argparse.ArgumentParser(description="where a step's time goes")
    flags.add_argument("--data", default="hh")
    flags.add_argument("--loss", default="kto")
    flags.add_argument("--model", default="42m-32k")
    flags.add_argument("--batch", type=int, default=8)
    flags.add_argument("--steps", type=int, default=3)
    flags.add_argument("--threads", type=int, default=0)
    options = flags.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    workload.ensure([options.model])
    path, _ = workload.rows_file(options.data, options.loss, options.batch * (options.steps + 2))
    scratch = BUILD / "scratch-profile"
    asked = {"name": "profile", "model": str(workload.model_folder(options.model)), "data": str(path), "seed": 0}
    asked |= {"out": str(scratch / f"out-{time.time_ns()}"), "cache": str(scratch), "context": workload.CONTEXT}
    asked |= {"loss": options.loss, "batch": options.batch, "precision": "auto"}
    job = with_reference(prepared(asked, Marks(scratch / "marks.jsonl", "profile")))
    parameters = job.policy.trainable()
    optimizer = make_optimizer(parameters, job.config)
    spent: dict[str, float] = {}

    def take(step: Any) -> None:
        (micro_batches,) = cut_step(job.dataset, step.rows, 1, job.token_budget)
        point = timed("z0", step_module.estimate_z0)(job, step, [micro_batches], None)
        timed("forward and backward", step_module.gradient)(job, step, micro_batches, point)
        timed("clip", torch.nn.utils.clip_grad_norm_)([p for _, p in parameters], 10.0)
        timed("optimizer", optimizer.step)()
        optimizer.zero_grad(set_to_none=True)

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return work(*args, **kwargs)
            finally:
                spent[name] = spent.get(name, 0.0) + time.perf_counter() - began

        return measured

    steps = job.schedule.steps
    take(steps[0])
    spent.clear()
    inner = ((packing, "pack"), (job.policy.decoder, "forward"))
    head = logprobs._TokenLogp
    with ExitStack() as stack:
        for owner, name in inner:
            stack.enter_context(mock.patch.object(owner, name, timed(f"  of it: {name}", getattr(owner, name))))
        for name in ("forward", "backward"):
            work = staticmethod(timed(f"  of it: head {name}", getattr(head, name)))
            stack.enter_context(mock.patch.object(head, name, work))
        began = time.perf_counter()
        for step in steps[1 : 1 + options.steps]:
            take(step)
        whole = time.perf_counter() - began
    tokens = sum(real_tokens(job.dataset, step.rows) for step in steps[1 : 1 + options.steps])
    print(f"{whole / options.steps:.3f} s a step, {tokens / whole:,.0f} real tokens/s, {packing.__name__} engine")
    for name, seconds in spent.items():
        print(f"{100 * seconds / whole:5.1f} %  {name}")
    with profile(activities=[ProfilerActivity.CPU]) as found:
        take(steps[1 + options.steps])
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=44))


if __name__ == "__main__":
    main()
