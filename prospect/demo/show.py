"""What the demo shows: in the terminal, and in the report through story.json."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from prospect.demo import users
from prospect.feedback.records import Record
from prospect.training.console import Console

ARMS = {
    "start": "start model",
    "sft": "SFT on the thumbs up",
    "kto": "KTO",
    "kto_shuffled": "KTO, thumbs shuffled",
}
"""The models that are measured, in the order of tables."""

EXAMPLES = {"win": 2, "unchanged": 1, "loss": 1}
"""The outcomes of a question, and how many questions of each are shown."""


def headline(console: Console, text: str) -> None:
    """The title of a chapter; a command stands in it on one line."""
    console.print(f"\n[bold]{escape(text)}[/]", highlight=False, soft_wrap=True)


def flags(options: dict[str, Any]) -> str:
    """What prospect.train is given, as one types it: {"batch_size": 32} -> --batch-size 32."""
    values = {k.replace("_", "-"): v for k, v in options.items() if k != "loss_args"}
    values |= {f"loss.{name}": value for name, value in options.get("loss_args", {}).items()}
    return " ".join(f"--{name} {value}" for name, value in values.items())


def thumbs(console: Console, records: Sequence[Record], rng: random.Random, count: int = 4) -> None:
    """Answers with their thumbs, half of them up, drawn at random."""
    table = Table("question", "answer", "thumb", show_lines=True)
    for label in (True, False):
        with_label = [record for record in records if record.completions[0].label is label]
        for record in rng.sample(with_label, min(count // 2, len(with_label))):
            assert not isinstance(record.prompt, str)
            question, answer = str(record.prompt[-1]["content"]), record.completions[0].content
            table.add_row(escape(question), escape(str(answer)), "[green]up[/]" if label else "[red]down[/]")
    console.print(table)
    up = sum(record.completions[0].label is True for record in records)
    console.print(f"{up} thumbs up, {len(records) - up} thumbs down", highlight=False)


def outcome(row: dict[str, Any]) -> str:
    """Whether KTO's answer at temperature 1 is desirable where the start model's was not (win), the reverse (loss), or
    neither (unchanged)."""
    before, after = row["start"]["1"]["desirable"], row["kto"]["1"]["desirable"]
    return "unchanged" if before == after else "win" if after else "loss"


def choose(rows: Sequence[dict[str, Any]], rng: random.Random) -> list[tuple[str, dict[str, Any]]]:
    """The questions to show, (outcome, line of answers.jsonl), drawn at random among those of their outcome."""
    examples = []
    for name, count in EXAMPLES.items():
        candidates = [row for row in rows if outcome(row) == name]
        examples += [(name, row) for row in rng.sample(candidates, min(count, len(candidates)))]
    return examples


def story(summary: dict[str, Any], examples: Sequence[tuple[str, dict[str, Any]]], questions: int) -> dict[str, Any]:
    """story.json, from which the report tells what happened."""
    arms, feedback = summary["arms"], summary["feedback"]
    paragraphs = [
        "A small assistant learned its skills from schoolbooks and the web, and its manners in a forum where most "
        "people answer badly: but for sums, each kind of question has its usual bad answer, and one answer in four is "
        "right, civil and to the point.",
        f"It answered {questions:,} questions. Simulated users, who like just such answers, gave "
        f"{feedback['desirable']:,} thumbs up and {feedback['undesirable']:,} thumbs down; "
        f"{users.NOISE:.0%} of the thumbs are slips, {1 - users.THUMB_RATE:.0%} of the answers got none.",
        f"KTO learned from these thumbs alone. The table has the share of desirable answers to {summary['n']:,} other "
        "questions, none of which was ever thumbed or seen in its schooling, with 95 % intervals. At temperature 0 a "
        "model always gives its likeliest answer.",
    ]
    table = {
        "columns": ["", "temperature 0", "temperature 1"],
        "rows": [[ARMS[arm], *(_share(by_temperature[t]) for t in ("0", "1"))] for arm, by_temperature in arms.items()],
    }
    bars = [
        {
            "label": f"{ARMS[arm]}, temperature {t}",
            "rate": by_temperature[t]["desirable_rate"],
            "low": by_temperature[t]["ci95"][0],
            "high": by_temperature[t]["ci95"][1],
            "kind": "main" if arm == "kto" else "base",
        }
        for arm, by_temperature in arms.items()
        for t in ("0", "1")
    ]
    answers = [
        {
            "prompt": row["prompt"],
            "before": row["start"]["1"]["text"],
            "after": row["kto"]["1"]["text"],
            "before_ok": row["start"]["1"]["desirable"],
            "after_ok": row["kto"]["1"]["desirable"],
        }
        for _, row in examples
    ]
    title = "From thumbs to a better assistant"
    return {"title": title, "paragraphs": paragraphs, "table": table, "bars": bars, "answers": answers}


def end(
    console: Console,
    summary: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    examples: Sequence[tuple[str, dict[str, Any]]],
    folder: Path,
) -> None:
    """Before and after for people, and what they can do next."""
    answers = Table("question", "before", "after", "", show_lines=True)
    for name, row in examples:
        sides = [(row[arm]["1"]["text"], row[arm]["1"]["desirable"]) for arm in ("start", "kto")]
        cells = [f"[{'green' if good else 'red'}]{escape(text)}[/]" for text, good in sides]
        answers.add_row(escape(row["prompt"]), *cells, name)
    console.print(answers)
    counts = [f"{sum(outcome(row) == name for row in rows)} {name}" for name in EXAMPLES]
    console.print(f"at temperature 1: {', '.join(counts)}; those shown are drawn at random", highlight=False)
    table = Table("desirable answers", "temperature 0", "temperature 1")
    for arm, by_temperature in summary["arms"].items():
        table.add_row(ARMS[arm], *(_share(by_temperature[t]) for t in ("0", "1")))
    console.print(table)
    lines = (
        f"{summary['n']:,} questions, 95 % intervals, {summary['seconds']:.0f} s. Report: {folder / 'report.html'}",
        "",
        f"Talk to both:  prospect chat --model {folder / 'run' / 'model'} --compare {folder / 'assistant'}",
        "Your own file: prospect train --model MODEL --data thumbs.jsonl --out runs/first --eval-fraction 0.1",
    )
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _share(rates: dict[str, Any]) -> str:
    """94.3 % (92.7 to 95.5)"""
    low, high = rates["ci95"]
    return f"{rates['desirable_rate']:.1%} ({100 * low:.1f} to {100 * high:.1f})"
