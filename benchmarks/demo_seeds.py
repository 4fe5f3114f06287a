"""The demo with its baselines, three seeds, into benchmarks/results/demo.json and demo.md.

    python -m benchmarks.demo_seeds [--seeds 0 1 2] [--work build/demo-seeds]
    python -m benchmarks.demo_seeds --sft-rates 2e-4 3e-4 5e-4 1e-3     # SFT's grid, on seed 7

What --work holds already is not run again. Every seed is `prospect demo --baselines --seed S`, to the digit.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

import prospect
from benchmarks.marks import RESULTS, ROOT, Facts, commit, hardware, read, write_json
from prospect.cli.options import quiet_loading
from prospect.demo import users, world
from prospect.demo.show import ARMS
from prospect.demo.story import (
    TEMPERATURES,
    Plan,
    answer,
    run_demo,
)
from prospect.engine.load import load
from prospect.training.console import Console
from prospect.training.runlog import read_metrics

GRID_SEED = 7
"""Whose questions choose SFT's learning rate; no figure comes from it."""

PAIRS = (("kto", "sft"), ("kto", "start"), ("kto_shuffled", "start"))
"""Which arms are compared on the same questions."""


def live(folder: Path, seed: int, plan: Plan) -> Facts:
    """The demo's summary and what it measured of every pair of arms; run only if `folder` does not hold it."""
    if not (folder / "summary.json").exists():
        run_demo(folder, seed, plan, baselines=True)
    summary: Facts = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    rows = read(folder / "answers.jsonl")
    pairs = {f"{a} - {b}": {str(t): difference(rows, a, b, str(t)) for t in TEMPERATURES} for a, b in PAIRS}
    return summary | {"pairs": pairs}


def difference(rows: Sequence[Facts], arm: str, other: str, temperature: str) -> Facts:
    """The share of desirable answers of `arm` less that of `other` on the same questions, with its 95 % interval (the
    normal one of a mean of paired differences)."""
    gains = [row[arm][temperature]["desirable"] - row[other][temperature]["desirable"] for row in rows]
    mean, half = statistics.fmean(gains), 1.96 * statistics.stdev(gains) / math.sqrt(len(gains))
    return {"mean": mean, "ci95": [mean - half, mean + half]}


def imitation(folder: Path, rate: float, plan: Plan) -> Facts:
    """The share of desirable answers after SFT at a learning rate, at every temperature, in the demo of GRID_SEED."""
    if not (folder / "summary.json").exists():
        run_demo(folder, GRID_SEED, plan)
    metrics = read_metrics(folder / "run" / "metrics.jsonl")
    steps = max(int(line["step"]) for line in metrics if line["event"] == "step")
    trained = prospect.train(
        model=folder / "assistant",
        data=folder / "feedback.jsonl",
        out=folder / f"sft-{rate:g}",
        seed=GRID_SEED,
        partner_seed=GRID_SEED,
        loss="sft",
        learning_rate=rate,
        max_steps=steps,
        epochs=steps,
        **plan.training,
    )
    policy = load(trained.folder / "model", frozen=True)
    questions = world.ask_reserved(random.Random(f"demo {GRID_SEED}"), plan.test_questions)
    shares = {}
    for t in TEMPERATURES:
        answers = answer(policy, questions, plan, t, seed=GRID_SEED + 1, console=Console(quiet=True))
        good = [users.judge(q, a.text, complete=a.complete).desirable for q, a in zip(questions, answers, strict=True)]
        shares[str(t)] = sum(good) / len(good)
    return shares


def page(facts: Facts) -> str:
    """demo.md."""
    seeds = facts["seeds"]
    shares, pairs = [], []
    for seed in seeds:
        for arm, at in seed["arms"].items():
            cells = (_cell(at[str(t)]["desirable_rate"], at[str(t)]["ci95"]) for t in TEMPERATURES)
            shares.append(f"| {seed['seed']} | {ARMS[arm]} | {' | '.join(cells)} |")
        for (arm, other), at in zip(PAIRS, seed["pairs"].values(), strict=True):
            cells = (_cell(at[str(t)]["mean"], at[str(t)]["ci95"], "+") for t in TEMPERATURES)
            pairs.append(f"| {seed['seed']} | {ARMS[arm]} less {ARMS[other]} | {' | '.join(cells)} |")
    seconds = ", ".join(f"{s['seconds']:.0f}" for s in seeds)
    return HEAD.format(
        count=seeds[0]["n"],
        commit=facts["commit"],
        **facts["hardware"],
        seconds=seconds,
        shares="\n".join(shares),
        pairs="\n".join(pairs),
    )


def _cell(value: float, interval: Sequence[float], sign: str = "") -> str:
    low, high = (100 * end for end in interval)
    return f"{100 * value:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"


HEAD = """# The demo, seed by seed

`python -m benchmarks.demo_seeds` at {commit}, {threads} threads on {processor}, torch {torch}, transformers
{transformers}; {seconds} s with all baselines. Share of desirable answers to {count:,} questions that nobody thumbed,
in per cent with 95 % intervals (Wilson). SFT takes as many steps as KTO on the same file, at one of
the two best of four learning rates on other questions (`--sft-rates`). Another number of
threads sums in another order and gives other figures.

| seed | arm | temperature 0 | temperature 1 |
|---|---|---|---|
{shares}

The same questions, paired: percentage points with 95 % intervals.

| seed | difference | temperature 0 | temperature 1 |
|---|---|---|---|
{pairs}
"""


def main() -> None:
    """Run what is missing, then write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sft-rates", type=float, nargs="+")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "demo-seeds")
    options = parser.parse_args()
    quiet_loading()
    plan = Plan()
    if options.sft_rates:
        for rate in options.sft_rates:
            print(f"{rate:g}", imitation(options.work / f"seed-{GRID_SEED}", rate, plan), flush=True)
        return
    seeds = [live(options.work / f"seed-{seed}", seed, plan) for seed in options.seeds]
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
    }
    facts = {"commit": commit(), "hardware": hardware() | versions, "seeds": seeds}
    write_json(RESULTS / "demo.json", facts)
    (RESULTS / "demo.md").write_text(page(facts), encoding="utf-8")


if __name__ == "__main__":
    main()
