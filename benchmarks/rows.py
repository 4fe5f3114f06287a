"""From a feedback file to the first step, per row: .venv/bin/python -m benchmarks.rows [--rows 1000 10000 100000]

A first run with an empty cache, and second runs of a sweep, which find all there that does not depend on what is swept.
The reference table is filled with zeros, so that nothing but data is computed. Every run is a process of its own.
Writes benchmarks/results/rows.md and rows.json.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import workload
from benchmarks.marks import BUILD, RESULTS, ROOT, Facts, commit, hardware, peak_rss, write_json
from prospect.data.store import ValueTable
from prospect.doctor.check import check_run
from prospect.engine.packing import Query, pack
from prospect.engine.reference import ReferenceTable, row_key
from prospect.feedback.load import load
from prospect.losses import registry
from prospect.training import setup
from prospect.training.batch import cut_step
from prospect.training.config import from_dict
from prospect.training.runlog import RunLog

SCRATCH = BUILD / "scratch-rows"
STAGES = ("reading", "tokenising", "checking", "planning", "look-up")
"""In the order of a run; "packing" is measured on a sample of steps and not part of what precedes the first."""
DATA, SAMPLE = "hh", 30


def rows_file(rows: int) -> Path:
    """Rows whose words are single tokens, with prompts and answers as long as DATA's."""
    path = SCRATCH / f"{rows}.jsonl"
    names = json.loads((BUILD / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    words = [name[1:] for name in names if re.fullmatch("\u0120[a-z]+", name)]  # a blank, then letters
    rng = random.Random(f"rows {rows}")
    prompts, answers, per_prompt = workload.LENGTHS[DATA]

    def text(deciles: Sequence[int]) -> str:
        k = rng.randrange(len(deciles) - 1)
        count = max(1, round(rng.uniform(deciles[k], deciles[k + 1])))
        return " ".join(words[min(int(rng.paretovariate(0.7)), len(words)) - 1] for _ in range(count))

    def lines() -> Iterator[str]:
        for i in range(rows):
            if i % per_prompt == 0:
                prompt = f"User: {text(prompts)}\n\nAssistant:"
            yield json.dumps({"prompt": prompt, "completion": " " + text(answers), "label": i % 2 == 0}) + "\n"

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines()), encoding="utf-8")
    return path


def measured(path: Path, cache: Path) -> Facts:
    """Seconds of each stage up to the first step, and what was done."""
    found: Facts = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began, used = time.perf_counter(), time.process_time()
        result = work()
        found[name], found[f"{name} cpu"] = time.perf_counter() - began, time.process_time() - used
        return result

    model = str(workload.model_folder("tiny"))
    given = {"model": model, "data": str(path), "out": str(SCRATCH / "out"), "cache": str(cache)}
    config = from_dict(given | {"batch_size": 32, "precision": "fp32", "device": "cpu"}, "rows")
    loss = registry.find("kto")
    policy = setup.load_policy(config, model, frozen=False)
    feedback = timed("reading", lambda: load(path))
    dataset, _ = timed("tokenising", lambda: setup.rows(config, loss, feedback, None, policy))
    options = setup.data_options(config, policy)
    timed("checking", lambda: check_run(feedback, None, policy.tokenizer, loss.view, options))
    (SCRATCH / "out").mkdir(parents=True, exist_ok=True)
    job = timed("planning", lambda: setup.prepare(config, loss, policy, dataset, RunLog(SCRATCH / "out")))
    if not (cache / "reference").exists():
        with mock.patch.object(ReferenceTable, "fill", zeros):
            setup.reference_table(job)
    kept = timed("look-up", lambda: setup.reference_table(job))
    assert kept.forwards == 0
    for kind in ("", " cpu"):
        found["after load" + kind] = sum(found[stage + kind] for stage in STAGES[1:])
    micros = [m for step in job.schedule.steps[:SAMPLE] for m in cut_step(dataset, step.rows, 1, job.token_budget)[0]]
    timed("packing", lambda: [pack(micro.trees) for micro in micros])
    counts = {"rows": len(dataset.examples), "packed": sum(len(micro.rows) for micro in micros)}
    tokens = sum(len(tree.prompt) + sum(len(c) for c in tree.completions if c is not None) for tree in dataset.trees)
    return found | counts | {"tokens": tokens, "peak_rss": peak_rss()}


def zeros(self: ReferenceTable, policy: Any, queries: Sequence[Query], **_: Any) -> None:
    """In `fill`'s place: a row of the right length for every query, and no forward."""
    assert self.path is not None
    ValueTable(self.path).write((row_key(query), np.zeros(len(query[1]), self.dtype).tobytes()) for query in queries)


def main() -> None:
    """Measure every size in turn, each time in a new process, and write the table."""
    flags = argparse.ArgumentParser(description="from a feedback file to the first step")
    flags.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000])
    flags.add_argument("--repeats", type=int, default=3)
    flags.add_argument("--one", type=Path, default=None, help=argparse.SUPPRESS)
    options = flags.parse_args()
    if options.one is not None:
        measured(SCRATCH / "warm.jsonl", SCRATCH / "cache-warm")
        print(json.dumps(measured(options.one, SCRATCH / "cache")))
        return
    workload.ensure(["tiny"])
    shutil.rmtree(SCRATCH, ignore_errors=True)  # an earlier version's tables have other keys
    rows_file(200).replace(SCRATCH / "warm.jsonl")
    found: Facts = {"commit": commit(), "hardware": hardware(), "first": {}, "second": {}}
    for path in map(rows_file, options.rows):
        shutil.rmtree(SCRATCH / "cache", ignore_errors=True)
        first, *later = [one(path) for _ in range(1 + options.repeats)]
        found["first"][path.stem] = first
        found["second"][path.stem] = {key: statistics.median(each[key] for each in later) for key in first}
        path.unlink()
    write_json(RESULTS / "rows.json", found)
    told = "\n".join(lines(found))
    (RESULTS / "rows.md").write_text(told + "\n", encoding="utf-8")
    print(told)


def one(path: Path) -> Facts:
    """A run in a process of its own."""
    call = [sys.executable, "-m", "benchmarks.rows", "--one", str(path)]
    done = subprocess.run(call, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def lines(found: Facts) -> Iterator[str]:
    """The table as Markdown."""
    machine, columns = found["hardware"], (*STAGES, "after load")
    yield "# From a feedback file to the first step\n"
    yield f"At {found['commit']}, {machine['cores']} cores of {machine['processor']}. Seconds, and in brackets"
    yield "microseconds of processor time per row. The model is loaded after reading; packing belongs to every step.\n"
    yield f"| run | rows | {' | '.join(columns)} | packing | peak memory, MiB |"
    yield "|---|" + "---:|" * (len(columns) + 3)
    for run_of, sizes in (("first", found["first"]), ("second", found["second"])):
        for each in sizes.values():
            cells = [f"{each[c]:.2f} ({1e6 * each[c + ' cpu'] / each['rows']:.0f})" for c in columns]
            cells += [f"({1e6 * each['packing cpu'] / each['packed']:.0f})", f"{each['peak_rss'] / 2**20:,.0f}"]
            yield f"| {run_of} | {each['rows']:,} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
