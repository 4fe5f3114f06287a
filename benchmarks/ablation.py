"""What each optimisation of the engine brings: python -m benchmarks.ablation [--pieces hh,cje,tulu,short] [--repeats 2]

Each optimisation of switches.py is switched off by itself, on the same steps, in a process of its own, between two runs
with everything on: its ratios are to those two. Writes ablation-DEVICE.json and .md to benchmarks/results, or where
--out says; what is measured there already, of the same package, is not measured again.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu, side_prospect, workload
from benchmarks.difference import difference
from benchmarks.marks import BUILD, RESULTS, Facts, commit, hardware, read, source, spread, write_json
from benchmarks.switches import NOT_MEASURED, OPTIMISATIONS, Optimisation
from benchmarks.table import summary
from prospect.data.store import read_json
from prospect.engine.device import pick_precision

STEPS = {"hh": (8, 5), "tulu": (4, 6), "cje": (4, 5), "short": (64, 5)}
"""Rows of a step and steps, of which the first warms up, by the kind of text: seconds for each run on two cores."""
CHECKED = 8
"""Rows of the step whose gradient is compared."""
SAME = {"fp32": 1e-4, "bf16": 5e-2}
"""Largest relative distance of a gradient that is the same but for rounding."""
BLOCK = 9
"""Optimisations that share two runs with everything on, one before the first, one in the middle."""
EARNS = 0.05
"""Of time or memory: what brings less should go."""
ALL_ON = "everything on, beside itself"


def child(job: Facts) -> str:
    """Do a job of side_prospect in a new process, which has imported and computed nothing but what its server, which
    computes nothing, has imported; what went wrong, or nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.side_prospect"])
    process = context.Process(target=side_prospect.run, args=(job,))
    process.start()
    process.join()
    return f"ended with {process.exitcode}" if process.exitcode else ""


def work(options: argparse.Namespace, data: str, rows: int, seed: int = workload.SEED) -> tuple[Path, Path, Path]:
    """The file of rows, the model and another model near it, made where they lack."""
    if options.model in workload.SHAPES and not options.tiny:
        workload.ensure_apart([options.model])
        models = [workload.model_folder(options.model, noisy) for noisy in (False, True)]
        return workload.rows_file(data, "kto", rows, seed)[0], models[0], models[1]
    folder = options.work / (data if options.tiny else "gpu")
    path, tokenizer = gpu.rows_and_tokenizer(folder, data, rows, options.tiny)
    models = [gpu.make_model(folder, options.model, tokenizer, options.device, k) for k in (0, 1)]
    return path, models[0], models[1]


def job_of(options: argparse.Namespace, mode: str, one: Optimisation | None, values: Facts) -> Facts:
    """The job of side_prospect, in a scratch folder that is new: no run finds what another computed."""
    name = one.name if one else "everything on"
    scratch = options.work / "ablation"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    job: Facts = {"mode": mode, "name": name, "switch": one.name if one else "", "loss": "kto", "seed": 0}
    job |= {"context": workload.CONTEXT, "device": options.device, "precision": options.precision}
    job |= {key: str(scratch / key) for key in ("out", "cache", "marks")} | values
    return job | {"options": job.get("options", {}) | (one.options if one else {})}


def measured(options: argparse.Namespace, rows: Path, model: Path, batch: int, one: Optimisation | None) -> Facts:
    """One run in figures: seconds of each step and of the reference pass, bytes at most, the first step's norm."""
    job = job_of(options, "timed", one, {"data": str(rows), "model": str(model), "batch": batch})
    wrong = child(job)
    if wrong:
        return {"failed": wrong}
    marks = read(Path(job["marks"]))
    at = {mark["event"]: mark["seconds"] for mark in marks}
    found = summary(marks, 1)
    steps_done = [mark for mark in marks if mark["event"] == "step"]
    figures: Facts = {"step_seconds": found["step_seconds"], "norm": steps_done[0]["grad_norm"]}
    figures["memory"] = max(mark["cuda_allocated" if options.device == "cuda" else "peak_rss"] for mark in steps_done)
    figures["reference_seconds"] = at["reference"] - at["prepared"]
    return figures | {"tokens": sum(found["step_tokens"]), "threads": found["loaded"]["threads"]}


def checked_in(device: str, precision: str) -> str:
    """What gradients are compared in: float32 hides nothing, but on CUDA there are kernels for half precision alone."""
    return "fp32" if device == "cpu" else precision


def checked(options: argparse.Namespace, chosen: Sequence[Optimisation], known: Facts) -> Iterator[tuple[str, Any]]:
    """Of each optimisation, but for those that are `known`, the relative distance of one step's gradient without it to
    the one with everything on, or what went wrong: policy and reference differ, and z0 is above 0."""
    chosen = [one for one in chosen if not isinstance(known.get(one.name), float)]
    if not chosen:
        return
    rows, model, other = work(options, options.pieces[0], CHECKED, 1)
    folder = options.work / "gradients"
    folder.mkdir(parents=True, exist_ok=True)
    precision = checked_in(options.device, options.precision)

    def gradient(one: Optimisation | None) -> tuple[Path, str, Facts]:
        path = folder / f"{'without' if one else 'whole'}.safetensors"
        values: Facts = {"data": str(rows), "model": str(model), "batch": CHECKED, "gradient": str(path)}
        values |= {"precision": precision, "options": {"reference": str(other)}}
        job = job_of(options, "check", one, values)
        wrong = child(job)
        return path, wrong, {} if wrong else read(Path(job["marks"]))[-1]

    whole, wrong, told = gradient(None)
    if not wrong and told["z0_raw"] <= 0:  # the other way round every log-ratio has the other sign
        model, other = other, model
        whole, wrong, told = gradient(None)
    if wrong:
        raise SystemExit(f"the gradient with everything on: {wrong}")
    for one in chosen:
        path, wrong, _ = gradient(one)
        yield one.name, wrong or difference(str(path), str(whole))["grad_distance"]
    shutil.rmtree(folder)


def blocks(names: Sequence[str]) -> Iterator[list[str]]:
    """As few as hold BLOCK each, of nearly equal sizes."""
    count = -(-len(names) // BLOCK)
    for k in range(count):
        yield list(names[k * len(names) // count : (k + 1) * len(names) // count])


def measure(options: argparse.Namespace) -> Facts:
    """Everything that is not in the file yet, which is written after every block."""
    chosen = [one for one in OPTIMISATIONS if not options.only or one.name in options.only]
    lacking = {one.name: why for one in chosen if (why := one.lacking(options.device))}
    chosen = [one for one in chosen if one.name not in lacking]
    path = options.out / f"ablation-{options.device}.json"
    same: Facts = {"source": source(), "device": options.device, "model": options.model}
    same |= {"precision": options.precision, "steps": {piece: list(options.steps[piece]) for piece in STEPS}}
    found: Facts = read_json(path) if path.exists() else {}
    if any(found.get(key) != value for key, value in same.items()):
        machine = hardware() | ({"gpu": torch.cuda.get_device_name()} if options.device == "cuda" else {})
        found = same | {
            "commit": commit(),
            "hardware": machine,
            "gradients": {},
            "cells": [],
            "seconds": 0.0,
            "failed": {},
        }
        found |= {"versions": {name: version(name) for name in ("torch", "transformers")}}
    found["left_out"] = lacking
    by_name = {one.name: one for one in chosen}
    began, before = time.monotonic(), found["seconds"]

    def keep() -> None:
        found["seconds"] = before + time.monotonic() - began
        write_json(path, found)
        (options.out / f"ablation-{options.device}.md").write_text(page(found), encoding="utf-8")

    for name, distance in checked(options, chosen, found["gradients"]):
        found["gradients"][name] = distance
        keep()
    for repeat, piece in itertools.product(range(options.repeats), options.pieces):
        done = {cell["name"] for cell in found["cells"] if (cell["piece"], cell["repeat"]) == (piece, repeat)}
        names = [name for name in by_name if name not in done]
        if not names:
            continue
        batch, steps = options.steps[piece]
        rows, model, _ = work(options, piece, batch * steps)
        for block in blocks(names[:: -1 if repeat % 2 else 1]):
            middle = -(-len(block) // 2)
            runs = [
                (name, measured(options, rows, model, batch, by_name.get(name)))
                for name in ("", *block[:middle], "", *block[middle:])
            ]
            on = [run for name, run in runs if not name]
            if any("failed" in run for run in on):
                raise SystemExit(f"with everything on: {on}")
            for name, run in runs:
                if "failed" in run:
                    found["failed"][name] = run["failed"]
                elif name:
                    found["failed"].pop(name, None)
                    cell = {"piece": piece, "repeat": repeat, "name": name, "run": run, "on": on}
                    found["cells"].append(cell)
            keep()
            print(f"{piece}, repeat {repeat + 1}: {', '.join(block)} at {found['seconds']:.0f} s", file=sys.stderr)
    keep()
    return found


def ratios(cells: Iterable[Facts], key: str, optional: bool = False) -> list[float]:
    """Without it over with it, one number for each run. Of steps, which have the same rows, the median of the ratios
    step by step, the first left out."""
    found = []
    for cell in cells:
        run, on = cell["run"], cell["on"]
        if key == "step_seconds":
            each = zip(run[key][1:], *(one[key][1:] for one in on), strict=True)
            ratio = statistics.median(own / statistics.mean(others) for own, *others in each)
        else:
            ratio = run[key] / statistics.mean(one[key] for one in on)
        found.append(1 / ratio if optional else ratio)
    return found


def themselves(cells: Sequence[Facts]) -> list[Facts]:
    """The runs with everything on, one beside the other, as cells: what a ratio is worth."""
    pairs = {str(cell["on"]): cell for cell in cells}.values()
    return [cell | {"name": ALL_ON, "run": cell["on"][1], "on": cell["on"][:1]} for cell in pairs]


KEYS = ("step_seconds", "reference_seconds", "memory")


def page(found: Facts) -> str:
    """The table for people."""
    machine, cells = found["hardware"], [*found["cells"], *themselves(found["cells"])]
    pieces = [piece for piece in STEPS if any(cell["piece"] == piece for cell in cells)]
    repeats = 1 + max((cell["repeat"] for cell in cells), default=0)
    where = machine.get("gpu") or f"{machine['processor']}, {machine['cores']} cores"
    threads = max((one["threads"] for cell in cells for one in cell["on"]), default=0)
    lines = [
        "# What each optimisation brings",
        "",
        f"{where}; {threads} threads, load at the start {machine['load_at_start']}. Prospect at {found['commit']}, "
        + ", ".join(f"{name} {number}" for name, number in found["versions"].items())
        + f"; KTO on a random model, {found['model']}, {found['precision']}; up to {repeats} runs of each, "
        f"{found['seconds'] / 60:.0f} minutes.",
        "",
        "Figures are of the engine without the one thing over the engine with it: of a step's time, of the reference "
        "pass's, and of peak memory; the median of the runs, least and most of them behind it. Above 1 it brings "
        f"something. **Bold** is what brings {EARNS:.0%} or more of any of them, in every run more than everything on "
        "ever differs from itself. Lines count those of its parts, which some share.",
        "",
    ]
    head = "".join(f" {piece}: step | reference | memory |" for piece in pieces)
    lines += [f"| optimisation | lines |{head} gradient | norm |", "|---|---:|" + "---:|" * (3 * len(pieces) + 2)]
    rows = [Optimisation(ALL_ON, "", ""), *(one for one in OPTIMISATIONS if one.name not in found["left_out"])]
    precision = checked_in(found["device"], found["precision"])
    lines += [
        row(one, pieces, cells, found["gradients"].get(one.name, ""), SAME[precision])
        for one in rows
        if any(cell["name"] == one.name for cell in cells)
    ]
    words = "Gradient: of one step, the relative distance of what is computed without it to what is with it, in "
    words += f"{precision}; policy and reference differ. Norm: how far the first "
    lines += ["", f"{words}step's gradient norm is off in the runs above, relative to it.", ""]
    lines += ["With everything on:", "", "| text | rows a step | step, s | reference pass, s | memory, MiB |"]
    lines += ["|---|---:|---:|---:|---:|"]
    for piece in pieces:
        on = [one for cell in found["cells"] if cell["piece"] == piece for one in cell["on"]]
        middle = {key: statistics.median(one[key] for one in on) for key in KEYS[1:]}
        step = statistics.median(seconds for one in on for seconds in one["step_seconds"][1:])
        lines += [
            f"| {piece} ({workload.TITLES[piece]}) | {found['steps'][piece][0]} | {step:.2f} "
            f"| {middle['reference_seconds']:.2f} | {middle['memory'] / 2**20:,.0f} |"
        ]
    lines += [
        "",
        "## What is switched off, and where it is",
        "",
        "| optimisation | without it | code |",
        "|---|---|---|",
    ]
    lines += [f"| {one.name} | {one.without} | {one.places()} |" for one in OPTIMISATIONS]
    lines += ["", "## Not in the table", ""]
    left_out = found["left_out"] | {name: f"its run {why}" for name, why in found["failed"].items()} | NOT_MEASURED
    lines += [f"- {name}: {why}" for name, why in left_out.items()]
    return "\n".join([*lines, ""])


def row(one: Optimisation, pieces: Sequence[str], cells: Sequence[Facts], distance: float | str, limit: float) -> str:
    """A line of the table."""
    columns, earns = [], False
    for piece in pieces:
        mine = [cell for cell in cells if (cell["name"], cell["piece"]) == (one.name, piece)]
        same = [cell for cell in cells if (cell["name"], cell["piece"]) == (ALL_ON, piece)]
        for key in KEYS:
            if not mine:
                columns.append("")
                continue
            value = spread(ratios(mine, key, one.optional))
            columns.append(f"{value['median']:.2f} ({value['min']:.2f}-{value['max']:.2f})")
            noise = max(abs(ratio - 1) for ratio in ratios(same, key))
            earns |= one.name != ALL_ON and value["median"] - 1 >= EARNS and value["min"] - 1 > noise
    name = f"**{one.name}**" if earns else one.name
    gradient = f"{distance:.0e}" if isinstance(distance, float) else distance
    if isinstance(distance, float) and distance > limit:
        gradient += " **another gradient**"
    mine = [cell for cell in cells if cell["name"] == one.name]
    off = max(abs(cell["run"]["norm"] / on["norm"] - 1) for cell in mine for on in cell["on"])
    columns += [gradient, f"{off:.0e}"]
    return f"| {name} | {one.lines() or ''} | " + " | ".join(columns) + " |"


def asked(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says, with what follows from it."""
    flags = argparse.ArgumentParser(description="what each optimisation brings")
    flags.add_argument("--pieces", default="hh,cje,tulu,short", help="kinds of text, by commas")
    flags.add_argument("--repeats", type=int, default=2)
    flags.add_argument("--only", nargs="*", default=[], metavar="NAME", help="some of the optimisations")
    flags.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    flags.add_argument("--precision", default="auto", choices=["auto", "bf16", "fp32"])
    flags.add_argument("--model", help="a shape of workload.py or gpu.py; else 42m-32k, on cuda qwen-0.5b")
    flags.add_argument("--tiny", action="store_true", help="a model of no use and two steps, to try the harness out")
    flags.add_argument("--work", type=Path, default=BUILD, help="where models and rows are made")
    flags.add_argument("--out", type=Path, help="where the results go; else benchmarks/results, of --tiny --work")
    options = flags.parse_args(arguments)
    unknown = set(options.only) - {one.name for one in OPTIMISATIONS}
    if unknown:
        flags.error(f"unknown: {', '.join(sorted(unknown))}. There are: {', '.join(one.name for one in OPTIMISATIONS)}")
    options.pieces = options.pieces.split(",")
    if not set(options.pieces) <= set(STEPS):
        flags.error(f"--pieces are some of {','.join(STEPS)}")
    options.model = "tiny" if options.tiny else options.model or ("42m-32k" if options.device == "cpu" else "qwen-0.5b")
    options.steps = dict.fromkeys(STEPS, (4, 2)) if options.tiny else STEPS
    if options.device == "cuda":
        options.steps = {piece: (4 * batch, steps) for piece, (batch, steps) in options.steps.items()}
    options.precision = pick_precision(options.precision, torch.device(options.device))
    options.out = options.out or Path(os.environ.get("OUT") or (options.work if options.tiny else RESULTS))
    options.out.mkdir(parents=True, exist_ok=True)
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and tell."""
    print(page(measure(asked(arguments))))


if __name__ == "__main__":
    main()
