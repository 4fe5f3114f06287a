"""Every loss on the demo's feedback: desirable answers before and after, three seeds, into docs/losses-measured.md.

    python -m benchmarks.demo_losses [--seeds 3] [--out benchmarks/results/demo_losses.jsonl]

The demo's assistant answers the same questions four times each; its simulated users thumb, and the same verdicts make
thumbs, pairs (a liked answer over a disliked one to the same question) and scores (how many of their three wishes an
answer met). Each loss trains once on the view it reads. All take one learning rate, one epoch and their default
arguments, but beta 1 where the default is for log-ratios of long answers: nothing was tuned for any of them, so this
shows what runs and what moves, and is no ranking. What is measured already is not run again.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import prospect
from prospect.cli.options import quiet_loading
from prospect.data.write import write as write_feedback
from prospect.demo import story as demo
from prospect.demo import users, world
from prospect.demo.world import Question
from prospect.engine.load import load
from prospect.engine.policy import Policy
from prospect.feedback.records import Completion, Record
from prospect.losses.registry import LOSSES, defaults
from prospect.training.console import Console

ASKED, ANSWERS, MEASURED = 768, 4, 512
PLAN = demo.Plan()
LEARNING_RATE = 3e-4
BETA = 1.0
QUIET = Console(quiet=True)


def rates(policy: Policy, questions: Sequence[Question], seed: int) -> dict[str, float]:
    """The share of desirable answers at every temperature."""
    shares = {}
    for temperature in demo.TEMPERATURES:
        answers = demo.answer(policy, questions, PLAN, temperature, seed=seed, console=QUIET)
        verdicts = [users.judge(q, a.text, complete=a.complete) for q, a in zip(questions, answers, strict=True)]
        shares[str(temperature)] = sum(verdict.desirable for verdict in verdicts) / len(verdicts)
    return shares


def feedback(policy: Policy, questions: Sequence[Question], seed: int, folder: Path) -> dict[str, Path]:
    """One file per view: thumbs (which also make pairs), and scores (which also make pairs with a margin)."""
    rng = random.Random(f"losses {seed}")
    given = [demo.answer(policy, questions, PLAN, seed=1000 * seed + k, console=QUIET) for k in range(ANSWERS)]
    thumbs, scores = [], []
    for number, question in enumerate(questions):
        prompt = ({"role": "user", "content": question.text},)
        liked: list[Completion] = []
        scored: list[Completion] = []
        for k in range(ANSWERS):
            answer = given[k][number]
            verdict = users.judge(question, answer.text, complete=answer.complete)
            label = users.thumb(verdict, rng)
            if label is None or answer.text in [c.content for c in liked]:
                continue
            name, met = f"q{number}/{k}", float(verdict.right + verdict.civil + verdict.brief)
            liked.append(Completion(name, answer.text, label, complete=answer.complete))
            scored.append(Completion(name, answer.text, score=met if label == verdict.desirable else 3 - met))
        if liked:
            thumbs.append(Record(f"q{number}", prompt, tuple(liked)))
            own = tuple(c.score for c in scored if c.score is not None)  # who answers is the reference
            scores.append(Record(f"q{number}", prompt, tuple(scored), reference_scores=own))
    paths = {"thumbs": folder / "thumbs.jsonl", "scores": folder / "scores.jsonl"}
    write_feedback(thumbs, paths["thumbs"])
    write_feedback(scores, paths["scores"])
    return paths


def run(
    name: str, start: Path, data: dict[str, Path], measured: Sequence[Question], seed: int, folder: Path
) -> dict[str, Any]:
    """Train one loss and measure it."""
    row, out, began = LOSSES[name], folder / "run", time.perf_counter()
    given = {"beta": BETA} if defaults(row).get("beta") == 0.1 and row.needs_reference else {}
    source = data["scores" if row.view in ("scores", "groups") or "margin" in row.reads else "thumbs"]
    shutil.rmtree(out, ignore_errors=True)
    options: dict[str, Any] = {
        "learning_rate": LEARNING_RATE,
        "clip": 1.0,
        "adam_beta2": 0.98,
        "samples": 0,
        "decay": "linear",
    }
    trained = prospect.train(
        model=start, data=source, out=out, loss=name, loss_args=given, seed=seed, cache=str(folder / "cache"), **options
    )
    steps = [m for m in trained.metrics if m["event"] == "step"]
    seconds = time.perf_counter() - began
    after = rates(load(out / "model", frozen=True), measured, 7 + seed)
    return {"loss": name, "seed": seed, "after": after, "seconds": round(seconds, 1), "steps": len(steps)}


def measurable() -> list[str]:
    """The losses that find in the demo's feedback what they read."""
    return [name for name, row in LOSSES.items() if not {"target", "win_rate"} & row.reads]


def measure(path: Path, seeds: int) -> None:
    """Append what is missing to `path`, a line per loss and seed."""
    quiet_loading()
    done = {(line["loss"], line["seed"]) for line in _lines(path)}
    for seed in range(seeds):
        if all((name, seed) in done for name in measurable()):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            folder, rng = Path(scratch), random.Random(f"losses {seed}")
            start = demo.shipped_assistant(folder / "assistant")
            asked = world.ask_reserved(rng, ASKED)
            measured = world.ask_reserved(rng, MEASURED, exclude=frozenset(q.key for q in asked))
            assistant = load(start, frozen=True)
            data, before = feedback(assistant, asked, seed, folder), rates(assistant, measured, 7 + seed)
            for name in measurable():
                if (name, seed) not in done:
                    found = run(name, start, data, measured, seed, folder) | {"before": before}
                    with path.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(found) + "\n")
                    print(json.dumps(found), flush=True)


def page(lines: list[dict[str, Any]]) -> str:
    """docs/losses-measured.md."""
    rows = [
        "| loss | temperature 0, by seed | mean | temperature 1, by seed | mean | seconds |",
        "|---|---|---|---|---|---|",
        f"| start model |{_cells(list({line['seed']: line['before'] for line in lines}.values()))} |",
    ]
    for name, row in LOSSES.items():
        mine = sorted((line for line in lines if line["loss"] == name), key=lambda line: line["seed"])
        if mine:
            seconds = statistics.median(line["seconds"] for line in mine)
            after = _cells([line["after"] for line in mine])
            rows.append(f"| [{row.name}](losses.md#{row.name}) |{after} {seconds:.0f} |")
    seeds = ", ".join(sorted({str(line["seed"]) for line in lines}))
    return HEAD + f"Seeds measured: {seeds}.\n\n" + "\n".join(rows) + "\n"


def _cells(seeds: Sequence[dict[str, float]]) -> str:
    """The shares of several seeds and their mean, at every temperature."""
    shares = [[seed[str(t)] for seed in seeds] for t in demo.TEMPERATURES]
    return "".join(f" {' '.join(f'{s:.1%}' for s in row)} | {statistics.fmean(row):.1%} |" for row in shares)


HEAD = f"""# Every loss on the demo's feedback

`python -m benchmarks.demo_losses` lets the demo's assistant answer {ASKED} questions {ANSWERS} times each, has the
simulated users judge the answers, and trains every loss on the view it reads: thumbs, pairs made of them, or scores.
Losses that read targets or win rates, which those users do not give, are left out.
Then it measures the share of desirable answers to {MEASURED} other questions at temperature 0 and 1 (standard error
about two points). One epoch, learning rate {LEARNING_RATE:g}, default arguments, but beta {BETA:g} where the default of
0.1 is meant for log-ratios of long answers.

Nothing was tuned for any loss, and paired losses see other rows than unpaired ones, so this is no ranking: it shows
that each of them runs and which way it moves the model. The demo itself trains on five times the thumbs, in smaller
steps.
DiscoPOP's slope has the wrong sign at the start, as published; unlikelihood takes good words down with bad ones; csft
has one epoch to learn what its two new tokens mean. Seconds are the median for training with everything around it, on a
machine that was not idle otherwise.

"""


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def main() -> None:
    """Measure, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/demo_losses.jsonl"))
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    measure(options.out, options.seeds)
    Path("docs/losses-measured.md").write_text(page(_lines(options.out)), encoding="utf-8")


if __name__ == "__main__":
    main()
