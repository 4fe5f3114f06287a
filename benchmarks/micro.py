"""Prospect's parts, one by one: .venv/bin/python -m benchmarks.micro [--quick] [--only NAME] [--fresh]

Writes benchmarks/results/micro.json (quick: micro-quick.json) and a table after every part; finished parts are kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch.nn.functional import logsigmoid

from benchmarks import kernels, workload
from benchmarks.kernels import clock, in_turn
from benchmarks.marks import BUILD, RESULTS, ROOT, Facts, Marks, commit, hardware, spread, write_json
from benchmarks.side_prospect import prepared, with_reference
from prospect.engine.attention import Scoring
from prospect.engine.device import COMPUTED_IN, matmul_peak
from prospect.engine.load import load
from prospect.engine.packing import Branches, Query, forward, move
from prospect.engine.policy import Policy
from prospect.engine.reference import score
from prospect.losses.numerics import segment_sum
from prospect.training import loop
from prospect.training import step as step_module
from prospect.training.batch import MicroBatch, cut_step
from prospect.training.optimizer import make_optimizer
from prospect.training.step import Job

MODEL = "42m-32k"


def startup(quick: bool) -> Facts:
    """Seconds of `prospect --help`."""
    program = sys.executable.replace("/python", "/prospect")
    return clock(lambda: subprocess.run([program, "--help"], capture_output=True, check=True), 3 if quick else 9)


def heads(quick: bool) -> Facts:
    """The log-prob head against others, each in a process of its own."""
    found: Facts = {}
    kinds = ["ours", "full logits"]
    if hasattr(torch.nn.functional, "linear_cross_entropy"):
        kinds.append("linear_cross_entropy")
    for vocabulary in (32_000,) if quick else (32_000, 128_000):
        for kind in kinds:
            tokens = 512 if quick else 2048
            call = f"k.head({kind!r}, {vocabulary}, {tokens})"
            code = f"import json; from benchmarks import kernels as k; print(json.dumps({call}))"
            done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
            found[f"{kind}, {vocabulary}"] = json.loads(done.stdout)
    return found


def attention(quick: bool) -> Facts:
    """Trees against padding, on lengths like those of the two kinds of data."""
    repeats = 3 if quick else 9
    hh = kernels.random_trees(
        [20, 60, 117, 180, 266, 400], [[24, 40], [10, 99], [31, 14], [53, 69], [40, 20], [30, 90]]
    )
    long = kernels.random_trees([12, 16, 22, 35], [[143, 316], [453, 261], [75, 515], [373, 430]])
    return {"long prompts": kernels.attention(hh, repeats), "long answers": kernels.attention(long, repeats)}


def job(loss: str, data: str, batch: int, steps: int, **options: Any) -> Job:
    """A prepared run on a sample, its reference filled."""
    path, _ = workload.rows_file(data, loss, batch * steps)
    scratch = BUILD / "scratch-micro"
    asked = {"name": "micro", "model": str(workload.model_folder(MODEL)), "data": str(path), "seed": 0, "loss": loss}
    asked |= {"out": str(scratch / f"out-{time.time_ns()}"), "cache": str(scratch / "cache"), "batch": batch}
    asked |= {"precision": "auto", "context": workload.CONTEXT, "options": options}
    return with_reference(prepared(asked, Marks(scratch / "marks.jsonl", "micro")))


def steps(quick: bool, data: str) -> Facts:
    """A KTO step over an SFT step on the same trained tokens, reference cached, in turn; the utilisation of both."""
    kto = job("kto", data, 8, 3 if quick else 6)
    peak = matmul_peak(kto.policy.device, COMPUTED_IN[kto.policy.precision])
    parameters = kto.policy.trainable()
    optimizer = make_optimizer(parameters, kto.config)
    took: dict[str, list[float]] = {"kto": [], "sft": []}
    work = {"kto": 0.0, "sft": 0.0}
    for k, step in enumerate(kto.schedule.steps * (1 if quick else 2)):
        micros = cut_step(kto.dataset, step.rows, 1, kto.token_budget)[0]
        for kind in ("kto", "sft"):
            began, done = time.perf_counter(), kto.policy.flops
            if kind == "kto":
                step_module.step_gradient(kto, step, None)
            else:
                imitate(kto.policy, micros)
            torch.nn.utils.clip_grad_norm_([p for _, p in parameters], 10.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if k:
                took[kind].append(time.perf_counter() - began)
                work[kind] += kto.policy.flops - done
    found: Facts = {kind: spread(times) for kind, times in took.items()}
    found |= {f"{kind}_utilisation": work[kind] / sum(took[kind]) / peak for kind in took}
    ratios = spread(a / b for a, b in zip(took["kto"], took["sft"], strict=True))
    return found | {"ratio": ratios, "ratio_of_work": work["kto"] / work["sft"]}


def imitate(policy: Policy, micros: list[MicroBatch]) -> None:
    """SFT's gradient on every answer of the micro-batches."""
    for micro in micros:
        logp = forward(policy, micro.trees).token_logp
        (-logp.mean()).backward()


def sharing(quick: bool) -> Facts:
    """DPO on pairs whose prompt is 2/3 of each row, over SFT on both sides without sharing."""
    policy = load(workload.model_folder(MODEL), precision="auto", device="cpu")
    trees = kernels.random_trees([256] * 4, [[128, 128]] * 4)
    apart = [Branches(tree.prompt, (answer,)) for tree in trees for answer in tree.completions]
    optimizer = torch.optim.AdamW(policy.model.parameters())

    def step(objective: torch.Tensor) -> None:
        objective.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def dpo() -> None:
        output = forward(policy, trees)
        sides = segment_sum(output.token_logp, move(output.offsets, policy.device)).view(-1, 2)
        reference = sides.detach()
        ratio = sides - reference
        step(-logsigmoid(0.1 * (ratio[:, 0] - ratio[:, 1])).mean())

    ways = {"dpo": dpo, "sft": lambda: step(-forward(policy, apart).token_logp.mean())}
    took = in_turn(ways, 2 if quick else 9)
    ratios = spread(a / b for a, b in zip(took["dpo"], took["sft"], strict=True))
    return {name: spread(times) for name, times in took.items()} | {"ratio": ratios}


def lengths(quick: bool) -> Facts:
    """Microseconds per token, forward and backward, of sequences from 256 to 4,096 tokens, 4,096 tokens in all: of
    everything, and with next to nothing in the place of attention."""
    policy = load(workload.model_folder(MODEL), precision="auto", device="cpu")
    policy = replace(policy, path="tree", checked_length=1 << 20)
    found: Facts = {}
    for size in (256, 1024) if quick else (256, 512, 1024, 2048, 4096):
        count = (1024 if quick else 4096) // size
        trees = kernels.random_trees([size // 2] * count, [[size // 2]] * count)

        def both(trees: list[Branches] = trees) -> None:
            forward(policy, trees).token_logp.sum().backward()
            policy.model.zero_grad(set_to_none=True)

        took = clock(both, 1 if quick else 5)
        with mock.patch("prospect.engine.attention.attend_blocks", _own_value):
            rest = clock(both, 1 if quick else 5)
        found[str(size)] = {
            "microseconds_per_token": 1e6 * took["median"] / (size * count),
            "microseconds_without_attention": 1e6 * rest["median"] / (size * count),
        }
        done = policy.flops
        both()
        found[str(size)] |= {"gflop_per_token": (policy.flops - done) / (size * count) / 1e9}
    return found


def _own_value(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _: Any, scoring: Scoring) -> torch.Tensor:
    """What every query would get that sees itself alone; queries and keys have a gradient of 0."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    return (value + 0 * query + 0 * key).transpose(1, 2).to(scoring.dtype)


def planning(quick: bool) -> Facts:
    """Seconds per row of planning and of packing."""
    sizes = (1000, 10_000) if quick else (1000, 10_000, 100_000)
    return {str(rows): kernels.planning(rows) for rows in sizes}


def reference(quick: bool) -> Facts:
    """The reference pass in batches of so many tokens, in turn: every answer and every mismatched one."""
    found: Facts = {}
    for data in ("hh",) if quick else ("hh", "cje"):
        ready = job("kto", data, 8, 2)
        rows = range(len(ready.dataset.examples))
        asked = ready.dataset.answered(rows) + ready.dataset.mismatched(
            rows, ready.schedule.partners, ready.policy.context
        )

        def all_of_it(budget: int, queries: list[Query], policy: Policy) -> None:
            for _ in score(policy, queries, token_budget=budget):
                pass

        sizes = (1024, 4096, 16384)
        ways = {str(size): partial(all_of_it, size, asked, ready.policy) for size in sizes}
        done = ready.policy.flops
        took = in_turn(ways, 2 if quick else 7)
        work = (ready.policy.flops - done) / len(ways) / (3 if quick else 8)
        peak = matmul_peak(ready.policy.device, COMPUTED_IN[ready.policy.precision])
        found[data] = {size: spread(times) | {"utilisation": work / min(times) / peak} for size, times in took.items()}
    return found


def sweep(quick: bool) -> Facts:
    """The reference pass of a first run, and a second run with another learning rate."""
    cache = BUILD / "scratch-micro" / f"cache-{time.time_ns()}"
    found: Facts = {}
    for name, rate in (("first", 5e-6), ("second", 1e-6)):
        began = time.perf_counter()
        ready = job("kto", "hh", 8, 2 if quick else 32, cache=str(cache), learning_rate=rate)
        loop.preflight(ready)
        marks = [json.loads(line) for line in (BUILD / "scratch-micro" / "marks.jsonl").read_text().splitlines()]
        last = {mark["event"]: mark for mark in marks}
        seconds = last["reference"]["seconds"] - last["prepared"]["seconds"]
        found[name] = {"forwards": last["reference"]["forwards"], "load_to_first_step": last["preflight"]["seconds"]}
        found[name] |= {"reference_seconds": seconds, "everything": time.perf_counter() - began}
        found[name] |= {"reference_tokens_per_second": last["prepared"]["tokens"] / seconds}
    return found


PARTS: dict[str, Callable[[bool], Facts]] = {
    "matmul peak": kernels.peak, "start-up": startup, "head": heads, "attention": attention, "planning": planning,
    "steps, hh": partial(steps, data="hh"), "steps, cje": partial(steps, data="cje"), "shared prompt": sharing,
    "length": lengths, "reference": reference, "sweep": sweep,
}  # fmt: skip


def main() -> None:
    """Measure part by part, keeping what is finished."""
    flags = argparse.ArgumentParser(description="Prospect's parts")
    flags.add_argument("--quick", action="store_true")
    flags.add_argument("--fresh", action="store_true")
    flags.add_argument("--only", default="")
    options = flags.parse_args()
    name = "micro-quick" if options.quick else "micro"
    path = RESULTS / f"{name}.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() and not options.fresh else {}
    found: Facts = kept if kept.get("commit") == commit() else {"commit": commit(), "hardware": hardware(), "parts": {}}
    found |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    workload.ensure([MODEL])
    for part, work in PARTS.items():
        if options.only not in part or part in found["parts"]:
            continue
        began = time.perf_counter()
        print(f"{part} ...", file=sys.stderr, flush=True)
        found["parts"][part] = work(options.quick)
        print(f"{part}: {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
        write_json(path, found)
    lines = ["# Prospect's parts", "", f"At {found['commit']}, torch {found['torch']}, {found['threads']} threads.", ""]
    lines += ["| part | figure | value |", "|---|---|---:|"]
    for part, values in found["parts"].items():
        lines += [f"| {part} | {key} | {value:.4g} |" for key, value in flat(values)]
    (RESULTS / f"{name}.md").write_text("\n".join([*lines, ""]), encoding="utf-8")
    print("\n".join(lines))


def flat(values: Facts, before: str = "") -> list[tuple[str, float]]:
    """Every number with its path; of a spread, the median with its ends beside it."""
    found: list[tuple[str, float]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += flat(value, f"{before}{key}, ")
        elif isinstance(value, int | float) and key != "n":
            found.append((f"{before}{key}", float(value)))
    return found


if __name__ == "__main__":
    main()
