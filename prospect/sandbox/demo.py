"""`prospect demo`: the whole story on a small model, through the same functions that a real model takes.

assistant/ -> answers at temperature 1 -> thumbs -> feedback.jsonl -> load, check -> prospect.train -> measure -> report

OUT/assistant/      a copy of the shipped start model          OUT/run/          the run folder, run/model the result
OUT/feedback.jsonl  what the simulated users thumbed            OUT/summary.json  the rates, for machines
                                                               OUT/report.html   the story, for the eye
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

import prospect
from prospect.engine.generate import Generated, generate
from prospect.engine.models import Policy, load
from prospect.errors import ConfigError
from prospect.evaluate.statistics import wilson
from prospect.feedback import formats
from prospect.feedback.check import check
from prospect.feedback.records import Completion, Record
from prospect.report.page import write_report
from prospect.sandbox import users, world
from prospect.sandbox.question import Question
from prospect.template import Template


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything. The defaults are what `prospect demo` does."""

    asked: int = 6144
    """Questions that the assistant answers for thumbs, once each."""
    measured: int = 1024
    """Other questions, on which desirability is measured before and after."""
    shown: int = 3
    """Measured questions whose answers are printed."""
    longest_answer: int = 48
    """In tokens; the longest schooled answer has about 40."""
    options: tuple[tuple[str, Any], ...] = (
        ("loss", "kto"),
        ("epochs", 3),
        ("batch_size", 32),
        ("learning_rate", 3e-4),
        ("loss_args", {"beta": 1.0}),
        ("adam_beta2", 0.98),
        ("decay", "linear"),
        ("clip", 1.0),
        ("eval_fraction", 0.05),
    )
    """What a user would pass to prospect.train. The learning rate is far above the default for billions of parameters:
    a model of two million needs, and bears, large steps; beta is the upper end of the paper's range for small models,
    since answers of a few words have small log-ratios."""


def shipped_assistant(out: Path) -> Path:
    """Copy the start model of the package to `out` and return it: a plain transformers folder."""
    with as_file(files("prospect.sandbox") / "assistant") as folder:
        return Path(shutil.copytree(folder, out))


def run_demo(out: str | Path, seed: int = 0, plan: Plan | None = None) -> dict[str, Any]:
    """Live through the story in the new folder `out` and return what summary.json says. `seed` changes everything.

    Raises ConfigError where `out` exists.
    """
    started, folder, plan = time.monotonic(), Path(out), plan or Plan()
    if folder.exists():
        raise ConfigError(f"{folder} exists, and the demo never overwrites: choose another --out")
    console = Console()
    start = shipped_assistant(folder / "assistant")
    rng = random.Random(f"demo {seed}")
    asked = world.ask_reserved(rng, plan.asked)
    measured = world.ask_reserved(rng, plan.measured, exclude=frozenset(question.key for question in asked))

    _headline(console, "1. A small assistant answers, users thumb")
    assistant = load(start, frozen=True)
    answers = _answers(assistant, asked, plan, seed, console)
    data = folder / "feedback.jsonl"
    formats.write(thumbed(asked, answers, rng), data)
    before = _answers(assistant, measured, plan, seed + 1, console)

    _headline(console, f"2. prospect check {data} --model {start}")
    feedback = formats.load(data)
    findings = check(feedback, tokenizer=assistant.tokenizer, max_length=assistant.context)
    for finding in findings.findings:
        console.print(f"{finding.level}: {escape(finding.message)}", highlight=False)

    _headline(console, f"3. prospect train --model {start} --data {data} --out {folder / 'run'}")
    options = dict(plan.options) | {"seed": seed, "partner_seed": seed, "cache": str(folder / "cache")}
    run = prospect.train(model=start, data=data, out=folder / "run", **options)

    _headline(console, "4. The same questions before and after, none of them thumbed")
    after = _answers(load(run.folder / "model", frozen=True), measured, plan, seed + 2, console)
    labels = [completion.label for record in feedback.records for completion in record.completions]
    summary = {
        "before": _measure(measured, before),
        "after": _measure(measured, after),
        "n": len(measured),
        "seconds": 0.0,
        "feedback": {"desirable": labels.count(True), "undesirable": labels.count(False)},
        "seed": seed,
    }
    answered = [_answered(*row) for row in zip(measured, before, after, strict=True)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in answered)
    (folder / "answers.jsonl").write_text(lines, encoding="utf-8")
    shown = answered[: plan.shown]
    _write(run.folder / "story.json", _story(summary, shown, plan))
    shutil.copyfile(write_report(run.folder), folder / "report.html")
    summary["seconds"] = round(time.monotonic() - started, 1)
    _write(folder / "summary.json", summary)
    _tell(console, summary, shown, folder)
    return summary


def thumbed(questions: Sequence[Question], answers: Sequence[Generated], rng: random.Random) -> list[Record]:
    """The feedback of the simulated users: one record per answer that got a thumb."""
    records = []
    for k, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        label = users.thumb(users.judge(question, answer.text, complete=answer.complete), rng)
        if label is not None:
            completion = Completion(f"q{k}/0", answer.text, label, complete=answer.complete)
            records.append(Record(f"q{k}", ({"role": "user", "content": question.text},), (completion,)))
    return records


def _answers(policy: Policy, questions: Sequence[Question], plan: Plan, seed: int, console: Console) -> list[Generated]:
    """One answer to each question at temperature 1, as a user of the model would get it."""
    assert policy.tokenizer is not None, "the assistant has a tokenizer"
    template = Template(policy.tokenizer)
    records = [Record(str(k), ({"role": "user", "content": q.text},), ()) for k, q in enumerate(questions)]
    prompts = [encoded.prompt for encoded in template.encode(records)]
    columns = (TextColumn("answers"), BarColumn(24), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=not console.is_terminal) as bars:
        task = bars.add_task("answers", total=len(prompts))
        return generate(
            policy,
            prompts,
            temperature=1.0,
            max_new_tokens=plan.longest_answer,
            seed=seed,
            progress=lambda done, _: bars.update(task, completed=done),
        )


def _measure(questions: Sequence[Question], answers: Sequence[Generated]) -> dict[str, Any]:
    """The rate of desirable answers, its 95 % interval (Wilson), and the rate of each virtue and kind of question."""
    verdicts = [users.judge(q, a.text, complete=a.complete) for q, a in zip(questions, answers, strict=True)]
    good = [verdict.desirable for verdict in verdicts]
    rate = wilson(sum(good), len(good))
    kinds = {kind: [g for q, g in zip(questions, good, strict=True) if q.kind == kind] for kind in world.KINDS}
    return {
        "desirable_rate": rate.value,
        "ci95": [rate.low, rate.high],
        "right": sum(v.right for v in verdicts) / len(verdicts),
        "civil": sum(v.civil for v in verdicts) / len(verdicts),
        "to_the_point": sum(v.brief for v in verdicts) / len(verdicts),
        "kinds": {kind: sum(found) / len(found) for kind, found in kinds.items() if found},
    }


def _answered(question: Question, before: Generated, after: Generated) -> dict[str, Any]:
    return {
        "prompt": question.text,
        "before": before.text,
        "after": after.text,
        "before_ok": users.judge(question, before.text, complete=before.complete).desirable,
        "after_ok": users.judge(question, after.text, complete=after.complete).desirable,
    }


def _story(summary: dict[str, Any], shown: list[dict[str, Any]], plan: Plan) -> dict[str, Any]:
    """story.json, from which the report tells what happened."""
    up, down = summary["feedback"]["desirable"], summary["feedback"]["undesirable"]
    rates = {name: summary[name]["desirable_rate"] for name in ("before", "after")}
    bars = [
        {
            "label": name.capitalize(),
            "rate": rates[name],
            "low": summary[name]["ci95"][0],
            "high": summary[name]["ci95"][1],
        }
        for name in rates
    ]
    paragraphs = [
        "A small assistant learned to answer everyday questions from people who were right, wrong, rude, rambling or "
        f"evasive, and copied them all: {rates['before']:.0%} of its answers were right, civil and to the point.",
        f"It answered {plan.asked} questions. Simulated users, who like just such answers, gave {up} thumbs up and "
        f"{down} thumbs down; {users.NOISE:.0%} of the thumbs are slips, {1 - users.THUMB_RATE:.0%} of the answers got "
        "none.",
        f"KTO learned from these thumbs alone. On {summary['n']} other questions, none of which was ever thumbed or "
        f"seen in its schooling, {rates['after']:.0%} of the answers are now desirable.",
    ]
    return {"title": "From thumbs to a better assistant", "paragraphs": paragraphs, "bars": bars, "answers": shown}


def _headline(console: Console, text: str) -> None:
    console.print(f"\n[bold]{escape(text)}[/]", highlight=False, soft_wrap=True)


def _tell(console: Console, summary: dict[str, Any], shown: list[dict[str, Any]], folder: Path) -> None:
    """Before and after for people."""
    answers = Table("question", "before", "after", show_lines=True)
    for row in shown:
        marked = [f"[{'green' if row[f'{side}_ok'] else 'red'}]{escape(row[side])}[/]" for side in ("before", "after")]
        answers.add_row(escape(row["prompt"]), *marked)
    console.print(answers)
    for name in ("before", "after"):
        rate, (low, high) = summary[name]["desirable_rate"], summary[name]["ci95"]
        said = f"{name:>6}: {rate:.1%} of {summary['n']} answers desirable (95 % interval {low:.1%} to {high:.1%})"
        console.print(said, highlight=False, soft_wrap=True)
    console.print(
        f"{summary['seconds']:.0f} seconds. The report is {folder / 'report.html'}", highlight=False, soft_wrap=True
    )


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")
