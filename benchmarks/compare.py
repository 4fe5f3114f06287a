"""Prospect beside TRL on the same work, in turn, each run in a process of its own: `make bench`, or

    .venv/bin/python -m benchmarks.compare --quick          a few steps, minutes
    .venv/bin/python -m benchmarks.compare                  all of it, an hour or two

What is finished is kept in build/bench/cells and not measured again unless --fresh, or the source of Prospect changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import table, workload
from benchmarks.marks import BUILD, ROOT, Facts, commit, hardware, read, write_json

HERE = Path(sys.executable)
PEER = ROOT / ".venv-bench" / "bin" / "python"
SIDES = ("prospect", "trl installed", "trl best")
BEST: Facts = {"precompute_ref_log_probs": True, "activation_checkpointing": False}
EXACT: Facts = {"activation_checkpointing": False, "max_grad_norm": 0.0, "max_steps": 1, "logging_steps": 1}


@dataclass(frozen=True, slots=True)
class Cell:
    """One piece of work that all sides do."""

    data: str
    loss: str
    model: str
    rows: int
    batch: int
    precision: str

    @property
    def name(self) -> str:
        """Of files and of people's progress."""
        return f"{self.data}-{self.loss}-{self.model}-{self.rows}x{self.batch}-{self.precision}"


def native_precision() -> str:
    """What the processor multiplies fast: emulated bf16 is many times slower than fp32, on both sides."""
    return "bf16" if {"avx512_bf16", "amx_bf16"} & set(hardware()["flags"]) else "fp32"


def cells(quick: bool, only: str, precision: str) -> list[Cell]:
    """What is measured: a first step to warm up, then the steps that count."""
    if quick:
        found = [
            Cell("hh", "kto", "42m-32k", 4 * 3, 4, precision),
            Cell("hh", "dpo", "42m-32k", 2 * 3, 2, precision),
        ]
    else:
        plan = [
            ("hh", "kto", "42m-32k"),
            ("cje", "kto", "42m-32k"),
            ("tulu", "kto", "42m-32k"),
            ("hh", "dpo", "42m-32k"),
        ]
        plan += [("hh", "kto", "91m-128k"), ("cje", "kto", "91m-128k")]
        found = [Cell(*three, 8 * 7, 8, precision) for three in plan]
    return [cell for cell in found if only in cell.name]


def run(side: str, job: Facts, fresh: bool) -> list[Facts]:
    """The marks of a run: those kept, or those of a new process."""
    sources = sorted((ROOT / "prospect").rglob("*.py")) if side == "prospect" else []
    parts = [json.dumps(job, sort_keys=True).encode(), *(path.read_bytes() for path in sources)]
    key = hashlib.sha256(b"".join(parts)).hexdigest()[:12]
    kept = BUILD / "cells" / f"{job['name'].replace(' ', '-')}-{key}.json"
    if kept.exists() and not fresh:
        print(f"{job['name']}: kept", file=sys.stderr, flush=True)
        return list(json.loads(kept.read_text(encoding="utf-8")))
    print(f"{job['name']}:", file=sys.stderr, flush=True)
    scratch = BUILD / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)  # no run finds what another computed
    scratch.mkdir(parents=True)
    places = {"out": str(scratch / "out"), "cache": str(scratch / "cache"), "marks": str(scratch / "marks.jsonl")}
    write_json(scratch / "job.json", job | places)
    program, module = (HERE, "side_prospect") if side == "prospect" else (PEER, "side_trl")
    log = BUILD / "logs" / f"{job['name'].replace(' ', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "true", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [program, "-m", f"benchmarks.{module}", scratch / "job.json"],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process, log.open("w", encoding="utf-8") as file:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            if line.startswith(f"  {job['name']}: "):
                print(line, end="", file=sys.stderr, flush=True)
    if process.returncode:
        raise SystemExit(f"{job['name']} failed with {process.returncode}; see {log.relative_to(ROOT)}")
    marks = read(scratch / "marks.jsonl")
    write_json(kept, marks)
    return marks


def job_of(side: str, cell: Cell, settings: Facts, name: str) -> Facts:
    """The job of a timed run."""
    path, _ = workload.rows_file(cell.data, cell.loss, cell.rows)
    job: Facts = {"mode": "timed", "name": name, "model": str(workload.model_folder(cell.model)), "data": str(path)}
    job |= {"loss": cell.loss, "seed": workload.SEED, "batch": cell.batch, "context": workload.CONTEXT}
    if side == "prospect":
        return job | {"precision": cell.precision}
    return job | {"settings": settings | {"bf16": cell.precision == "bf16"}}


def settings_of(side: str, cell: Cell, micro: int) -> Facts:
    """Arguments of TRL beside the shared ones."""
    if side != "trl best":
        return {}
    accumulate: Facts = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": cell.batch // micro}
    return BEST | accumulate | {"precompute_ref_batch_size": micro}


def best_micro(cell: Cell, fresh: bool) -> int:
    """The micro-batch with which TRL is fastest at the cell's batch size, by four steps of each, of which one warms up.
    Two were too few: a step of short rows hid what the padding of long ones costs."""
    rates = {}
    for micro in [m for m in (2, 4, 8) if m <= cell.batch]:
        small = replace(cell, rows=4 * cell.batch)
        name = f"tune trl {micro} {small.name}"
        marks = run("trl best", job_of("trl best", small, settings_of("trl best", small, micro), name), fresh)
        rates[micro] = table.summary(marks, 1)["steps_rate"]
    return max(rates, key=lambda micro: rates[micro])


def same_work(loss: str, precision: str, batch: int, fresh: bool) -> Facts:
    """One step of both sides on the same rows, weights, reference and mismatched answers: loss, z0, gradient.

    The policy differs from the reference, or every log-ratio would be 0 and so would z0.
    """
    path, facts = workload.rows_file("hh", loss, batch, seed=1)
    policy, reference = (workload.model_folder("42m-32k", noisy) for noisy in (True, False))
    folder = BUILD / "gradients"
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        found: dict[str, Facts] = {}
        for side in ("prospect", "trl"):
            job: Facts = {"mode": "check", "name": f"check {side} {loss} {precision} {policy.name}", "data": str(path)}
            job |= {"model": str(policy), "reference": str(reference), "loss": loss, "batch": facts["rows"], "seed": 0}
            job |= {
                "context": workload.CONTEXT,
                "gradient": str(folder / f"{side}-{loss}-{precision}-{policy.name}.safetensors"),
            }
            if side == "prospect":
                job |= {"precision": precision, "options": {"reference": str(reference)}}
            else:
                job |= {"settings": EXACT | {"bf16": precision == "bf16"}}
            again = fresh or not Path(job["gradient"]).exists()
            found[side] = {key: value for mark in run(side, job, again) for key, value in mark.items()}
        if found["prospect"].get("z0_raw", 1.0) > 0:
            break
        policy, reference = reference, policy  # the other way round every log-ratio has the other sign
    ending = f"{loss}-{precision}-{policy.name}.safetensors"
    paths = [str(folder / f"{side}-{ending}") for side in ("prospect", "trl")]
    done = subprocess.run(
        [HERE, "-m", "benchmarks.difference", *paths], cwd=ROOT, capture_output=True, text=True, check=True
    )
    z0 = {"z0": [found["prospect"].get("z0"), found["trl"].get("kl")]} if loss == "kto" else {}
    losses = {"loss_values": [found[side]["loss"] for side in ("prospect", "trl")]}
    tokens = {"tokens": [found[side]["tokens"] for side in ("prospect", "trl")]}
    difference: Facts = json.loads(done.stdout)
    return {"loss": loss, "precision": precision, "rows": facts["rows"]} | losses | z0 | tokens | difference


def measure(options: argparse.Namespace) -> Facts:
    """Everything, in turn: A, B, C, A, B, C, so that a machine that drifts drifts for all."""
    precision = options.precision or native_precision()
    work = cells(options.quick, options.only, precision)
    there = workload.ensure_apart(sorted({cell.model for cell in work} | {"42m-32k"}))
    repeats = options.repeats or (1 if options.quick else 3)
    found: Facts = {"hardware": hardware(), "commit": commit(), "quick": options.quick, "workload": there}
    found["precision"] = precision
    precisions = ("fp32",) if options.quick else sorted({"fp32", precision}, reverse=True)
    checks = [(loss, p) for loss in ("kto", "dpo") for p in precisions if not options.no_checks]
    found["checks"] = [
        same_work(loss, p, (4 if loss == "kto" else 2) if options.quick else 8, options.fresh) for loss, p in checks
    ]
    micros = {cell: cell.batch if options.quick else best_micro(cell, options.fresh) for cell in work}
    runs: dict[tuple[Cell, str], list[Facts]] = {}
    for repeat in range(repeats):
        for cell in work:
            for side in SIDES:
                job = job_of(side, cell, settings_of(side, cell, micros[cell]), f"{side} {cell.name} run {repeat + 1}")
                marks = run(side, job, options.fresh)
                epoch = there["data"][f"{cell.data}-{cell.loss}"]["tokens"]
                runs.setdefault((cell, side), []).append(table.summary(marks, epoch))
    found["cells"] = [
        {"data": cell.data, "loss": cell.loss, "model": cell.model, "batch": cell.batch, "side": side, "runs": many}
        | {"micro_batch": micros[cell] if side == "trl best" else None}
        for (cell, side), many in runs.items()
    ]
    return found


def main() -> None:
    """Measure, and write the table, the figures and what they were made from."""
    flags = argparse.ArgumentParser(description="Prospect beside TRL")
    flags.add_argument("--quick", action="store_true", help="a few steps of two cells, one run each")
    flags.add_argument("--fresh", action="store_true", help="measure again what is kept")
    flags.add_argument("--only", default="", help="only cells whose name contains this, such as hh-kto")
    flags.add_argument("--repeats", type=int, default=0, help="runs of each cell and side (quick: 1, else 3)")
    flags.add_argument(
        "--precision", default="", help="bf16 or fp32, for all sides; else what the processor is made for"
    )
    flags.add_argument("--no-checks", action="store_true", help="leave the comparison of gradients out")
    options = flags.parse_args()
    if not PEER.exists():
        raise SystemExit("there is no .venv-bench; `make bench` makes it")
    found = measure(options)
    table.write(found, "quick" if options.quick else f"comparison-{found['precision']}")


if __name__ == "__main__":
    main()
