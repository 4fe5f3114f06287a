"""report.html: one self-contained file about one run, a pure function of the run folder.

run folder --evidence.py--> RunFolder --figures.py, verdict.py, advice.py--> charts and words --page.html--> report.html
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from prospect.data import store
from prospect.evaluate.advice import LEGEND
from prospect.report import charts
from prospect.report.evidence import Data, Evidence, RunFolder, interval, items, number, objects, read, section
from prospect.report.next_steps import advise
from prospect.report.svg import minus
from prospect.report.verdict import verdict

Facts = list[tuple[str, str]]
HASH = re.compile(r"[0-9a-f]{32,}")
"""Digests and commits: the page shows how they begin, config.json has them whole."""
SAMPLES = 12
"""Most prompts whose answers are shown."""
MOST = 24
"""Most items of a list that are shown."""


def write_report(run_dir: Path) -> Path:
    """Write `run_dir`/report.html from the files in `run_dir` and return its path. What is absent is left out.

    Raises ConfigError where there is no such folder or a file in it is no JSON.
    """
    path = run_dir / "report.html"
    # Feedback may hold half a surrogate pair, which no encoding can write.
    store.write(path, render(read(run_dir)).encode("utf-8", "replace"))
    return path


def render(run: RunFolder) -> str:
    """The page as text."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    # Charts escape their own text, so only they may pass the template unescaped.
    environment.filters["chart"] = Markup
    environment.filters["signs"] = lambda words: re.sub(r"(?<![\w-])-(?=\d)", "−", words)
    page, style = (files("prospect.report").joinpath(name).read_text("utf-8") for name in ("page.html", "style.css"))
    return environment.from_string(page).render(_values(run), style=Markup(style))


def _values(run: RunFolder) -> dict[str, Any]:
    """Everything that the template names."""
    story = run.story
    table = section(story, "table")
    rows = [table.get("columns"), *items(table, "rows")]
    heldout = run.after or run.before
    counts = [f"{number(heldout, 'n', 0):,.0f} in all, to {number(heldout, 'prompts', 0):,.0f} prompts"]
    counts += [f"{number(heldout, side, 0):,.0f} {side}" for side in ("desirable", "undesirable")]
    return {
        "title": _title(run),
        "subtitle": _subtitle(run),
        "story": story,
        "story_table": [row for row in rows if isinstance(row, list)],
        "story_answers": objects(story, "answers"),
        "story_paragraphs": items(story, "paragraphs"),
        "story_figure": charts.story(story),
        "verdict": verdict(run),
        "tiles": _tiles(run),
        "outcome": charts.outcome(run),
        "notes": items(run.after, "notes"),
        "advice": advise(run) if run.steps or run.after else None,
        "legend": LEGEND,
        "samples": _samples(run.answers),
        "heldout": charts.heldout(run),
        "heldout_counts": ", ".join(counts),
        "curves": charts.curves(run) if run.steps else [],
        "training_summary": _training_summary(run),
        "findings": [finding | {"examples": items(finding, "examples")} for finding in objects(run.check, "findings")],
        "data_facts": _flat(section(run.check, "summary")),
        "warnings": run.warnings,
        "facts": _facts(run.config),
        "options": _flat(run.options),
    }


def _title(run: RunFolder) -> str:
    model, data = _tail(run.options.get("model")), _tail(run.options.get("data"))
    return f"{run.loss.upper()}: {model} on {data}" if run.loss and model and data else run.path.resolve().name


def _tail(path: object) -> str:
    """The last part of a path or Hub name; of several, the first."""
    if isinstance(path, list) and path:
        return f"{_tail(path[0])} and {len(path) - 1} more"
    return str(path or "").rstrip("/").rsplit("/", 1)[-1]


def _subtitle(run: RunFolder) -> str:
    model, data, schedule = (section(run.config, name) for name in ("model", "data", "schedule"))
    size = f"{model.get('architecture') or 'a model'} with {_big(number(model, 'parameters', 0))} parameters"
    parts = (
        (number(model, "parameters", 0), size),
        (number(data, "rows", 0), f"{number(data, 'rows'):,.0f} training rows"),
        (number(data, "heldout_rows", 0), f"{number(data, 'heldout_rows'):,.0f} held out"),
        (number(schedule, "steps", 0), f"{number(schedule, 'steps'):,.0f} steps"),
    )
    return ", ".join(words for count, words in parts if count)


def _big(count: float) -> str:
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if count >= size:
            return f"{count / size:.3g} {name}"
    return f"{count:,.0f}"


def _tiles(run: RunFolder) -> list[tuple[str, str, str, str]]:
    """(name, number, interval, note) of the headline numbers; the note says what a number was before, or the like."""
    e = Evidence(run)
    rows = (
        ("Held-out AUC", e.auc, "auc", ".3f", ""),
        ("Lead in AUC", e.lead, "", "+.3f", ""),
        ("Accuracy at z0", e.accuracy, "accuracy", ".3f", ""),
        ("Margin", e.margin, "margin", "+.3f", " β·nats"),
        ("NLL of liked answers", e.nll, "nll", ".3f", " nats a token"),
        ("Change of log-probs", e.change, "", ".3g", " nats an answer"),
        ("Calibration slope", e.slope, "", ".2f", ""),
    )
    tiles = []
    for name, now, key, form, unit in rows:
        if math.isfinite(now.value):
            value, low, high = (minus(format(end, form)) for end in (now.value, now.low, now.high))
            # What the untrained policy's reward is worth is known where it is its own reference: nothing.
            before = interval(run.before, key).value if key == "nll" or not run.own_reference else math.nan
            note = minus(f"before: {before:{form}}") if math.isfinite(before) else ""
            note = f"over {e.hardest_words}" if now is e.lead else note
            tiles.append((name, value, f"95 %: {low} to {high}{unit}", note))
    return tiles


def _training_summary(run: RunFolder) -> str:
    if not run.steps:
        return ""
    tokens, seconds = sum(v for v in run.series("tokens") if math.isfinite(v)), number(run.steps[-1], "seconds")
    parts = [f"{len(run.steps):,} optimizer steps"]
    if tokens:
        parts.append(f"{_big(tokens)} tokens")
    if math.isfinite(seconds):
        minutes = seconds / 60
        hours = f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
        parts.append(f"{seconds:.0f} seconds" if seconds < 90 else hours)
    smooth = " Lines are averages over neighbouring steps, bands show their standard deviation."
    return ", ".join(parts) + "." + (smooth if len(run.steps) > 2 * charts.WINDOWS else "")


def _samples(by_prompt: Mapping[str, Mapping[float, str]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(prompt, its answers with the names of their steps), in the order the prompts came."""
    samples = []
    for prompt, answers in list(by_prompt.items())[:SAMPLES]:
        steps = sorted(answers)
        names = [f"Step {step:.0f}" if step else "Before training" for step in steps]
        if len(steps) > 1:
            names[-1] = f"After {steps[-1]:.0f} steps"
        samples.append((prompt, [(name, answers[step]) for name, step in zip(names, steps, strict=True)]))
    return samples


def _facts(config: Data) -> list[tuple[str, Facts]]:
    """config.json in cards: the resolved options have a place of their own."""
    names = ("model", "data", "loss", "engine", "schedule", "versions")
    cards = [(name.title(), _flat(section(config, name))) for name in names]
    cards.append(("Provenance", _flat({k: v for k, v in config.items() if k not in (*names, "config")})))
    return [(title, rows) for title, rows in cards if rows]


def _flat(data: Data, prefix: str = "") -> Facts:
    """Nested data as (name, text) rows; what is null is left out."""
    rows: Facts = []
    for key, value in data.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, dict):
            rows += _flat(value, "" if key == "arguments" else f"{name} ")
        elif isinstance(value, str) and HASH.fullmatch(value):
            rows.append((name, f"{value[:16]}…"))
        elif value is not None and value != "":
            rows.append((name, _words(value)))
    return rows


def _words(value: object) -> str:
    """A value as a person would write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return minus(f"{value:,}" if abs(value) >= 10_000 else str(value))
    if isinstance(value, float):
        return minus(f"{value:.6g}")
    if isinstance(value, list):
        more = [f"and {len(value) - MOST} more"] if len(value) > MOST else []
        return ", ".join(map(_words, [*value[:MOST], *more])) or "none"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
