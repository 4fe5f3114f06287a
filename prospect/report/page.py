"""report.html: one self-contained file about one run, a pure function of the run folder.

run folder --folder.py--> RunFolder --figures.py, advice.py, verdict.py--> charts and words --page.html--> report.html
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from prospect.data import store
from prospect.report import figures
from prospect.report.advice import advise
from prospect.report.evidence import Evidence, interval
from prospect.report.folder import (
    Data,
    RunFolder,
    number,
    read,
    section,
)
from prospect.report.svg import minus
from prospect.report.verdict import verdict

Facts = list[tuple[str, str]]

HASH = re.compile(r"[0-9a-f]{32,}")
"""Digests and commits: the page shows how they begin, config.json has them whole."""

SAMPLES = 12
"""Most prompts whose answers are shown."""


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
    package = files("prospect.report")
    template = environment.from_string(package.joinpath("page.html").read_text(encoding="utf-8"))
    style = Markup(package.joinpath("style.css").read_text(encoding="utf-8"))
    values = _values(run)
    return template.render(values, style=style, contents=_contents(values))


def _values(run: RunFolder) -> dict[str, Any]:
    """Everything the template names."""
    return {
        "title": _title(run),
        "subtitle": _subtitle(run),
        "story": _story(run.story),
        "verdict": verdict(run),
        "tiles": _tiles(run),
        "outcome": figures.outcome(run),
        "notes": [str(note) for note in run.after.get("notes") or []],
        "advice": advise(run) if run.steps or run.after else None,
        "samples": _samples(run.answers),
        "histograms": figures.histograms(run),
        "discrimination": figures.discrimination(run),
        "heldout_counts": _heldout_counts(run.after or run.before),
        "curves": figures.curves(run) if run.steps else [],
        "training_summary": _training_summary(run),
        "findings": [_finding(f) for f in run.check.get("findings") or [] if isinstance(f, dict)],
        "data_facts": _flat(section(run.check, "summary")),
        "warnings": run.warnings,
        "facts": _facts(run),
        "options": _flat(run.options),
    }


def _contents(values: dict[str, Any]) -> list[tuple[str, str]]:
    """(anchor, name) of the sections that are there."""
    known = (
        ("story", "Story", values["story"]),
        ("outcome", "Outcome", values["verdict"]),
        ("next", "What to try next", values["advice"] is not None),
        ("answers", "Answers", values["samples"]),
        ("heldout", "Held-out", values["histograms"] or values["discrimination"]),
        ("training", "Training", values["curves"]),
        ("data", "Data", values["findings"] or values["data_facts"]),
        ("warnings", "Warnings", values["warnings"]),
        ("run", "The run", values["facts"]),
    )
    return [(anchor, name) for anchor, name, there in known if there]


def _title(run: RunFolder) -> str:
    model, data = _tail(run.options.get("model")), _tail(run.options.get("data"))
    if run.loss and model and data:
        return f"{run.loss.upper()}: {model} on {data}"
    return run.path.resolve().name


def _tail(path: object) -> str:
    """The last part of a path or Hub name; of several, the first."""
    if isinstance(path, list) and path:
        return f"{_tail(path[0])} and {len(path) - 1} more"
    return str(path or "").rstrip("/").rsplit("/", 1)[-1]


def _subtitle(run: RunFolder) -> str:
    model, data, schedule = (section(run.config, name) for name in ("model", "data", "schedule"))
    parts = []
    if number(model, "parameters", 0):
        parts.append(f"{model.get('architecture') or 'a model'} with {_big(number(model, 'parameters'))} parameters")
    if number(data, "rows", 0):
        parts.append(f"{number(data, 'rows'):,.0f} training rows")
    if number(data, "heldout_rows", 0):
        parts.append(f"{number(data, 'heldout_rows'):,.0f} held out")
    if number(schedule, "steps", 0):
        parts.append(f"{number(schedule, 'steps'):,.0f} steps")
    return ", ".join(parts)


def _big(count: float) -> str:
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if count >= size:
            return f"{count / size:.3g} {name}"
    return f"{count:,.0f}"


@dataclass(frozen=True, slots=True)
class Tile:
    """One headline number with its interval and a note, such as what it was before."""

    name: str
    number: str
    range: str
    note: str


def _tiles(run: RunFolder) -> list[Tile]:
    e = Evidence(run)
    named = (
        ("Held-out AUC", e.auc, "auc", ".3f", ""),
        ("Lead in AUC", e.lead, "", "+.3f", ""),
        ("Accuracy at z0", interval(section(run.after, "accuracy")), "accuracy", ".3f", ""),
        ("Margin", e.margin, "margin", "+.3f", " β·nats"),
        ("NLL of liked answers", e.nll, "nll", ".3f", " nats a token"),
        ("Change of log-probs", e.change, "", ".3g", " nats an answer"),
        ("Calibration slope", e.slope, "", ".2f", ""),
    )
    tiles = []
    for name, now, key, form, unit in named:
        if math.isfinite(now.value):
            value, low, high = (minus(format(end, form)) for end in (now.value, now.low, now.high))
            # What the untrained policy's reward is worth is known where it is its own reference: nothing.
            was = interval(section(run.before, key)).value if key == "nll" or not run.own_reference else math.nan
            note = minus(f"before: {was:{form}}") if math.isfinite(was) else ""
            note = f"over {e.hardest_words}" if now is e.lead else note
            tiles.append(Tile(name, value, f"95 %: {low} to {high}{unit}", note))
    return tiles


def _heldout_counts(data: Data) -> str:
    parts = [f"{number(data, 'n', 0):,.0f} in all, to {number(data, 'prompts', 0):,.0f} prompts"]
    parts += [f"{number(data, side, 0):,.0f} {side}" for side in ("desirable", "undesirable")]
    return ", ".join(parts)


def _training_summary(run: RunFolder) -> str:
    if not run.steps:
        return ""
    last = run.steps[-1]
    tokens = sum(v for v in run.series("tokens") if math.isfinite(v))
    parts = [f"{len(run.steps):,} optimizer steps"]
    if tokens:
        parts.append(f"{_big(tokens)} tokens")
    if math.isfinite(number(last, "seconds")):
        parts.append(_duration(number(last, "seconds")))
    drawn = (
        " Lines are averages over neighbouring steps, bands show their standard deviation."
        if len(run.steps) > 50
        else ""
    )
    return ", ".join(parts) + "." + drawn


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"


def _story(data: Data) -> dict[str, Any] | None:
    if not data:
        return None
    answers = []
    for item in data.get("answers") or []:
        if isinstance(item, dict):
            words = {name: str(item.get(name) or "") for name in ("prompt", "before", "after")}
            answers.append(words | {name: item.get(name) for name in ("before_ok", "after_ok")})
    return {
        "title": str(data.get("title") or "The story"),
        "paragraphs": [str(p) for p in data.get("paragraphs") or []],
        "table": _table(data.get("table")),
        "figure": figures.story(data),
        "answers": answers,
    }


def _table(data: Any) -> list[list[str]]:
    """The header and the rows of story.json's table."""
    if not isinstance(data, dict) or not isinstance(data.get("rows"), list):
        return []
    return [[str(cell) for cell in row] for row in (data.get("columns"), *data["rows"]) if isinstance(row, list)]


def _samples(by_prompt: Mapping[str, Mapping[float, str]]) -> list[dict[str, Any]]:
    """The same prompt's answers at several steps, in the order the prompts came."""
    found = []
    for prompt, answers in list(by_prompt.items())[:SAMPLES]:
        said = [
            {"name": f"Step {step:.0f}" if step else "Before training", "text": answers[step]}
            for step in sorted(answers)
        ]
        if len(said) > 1:
            said[-1]["name"] = f"After {max(answers):.0f} steps"
        found.append(
            {"prompt": prompt, "first": said[0], "last": said[-1] if len(said) > 1 else None, "between": said[1:-1]}
        )
    return found


def _finding(data: Data) -> dict[str, Any]:
    return {
        "level": str(data.get("level") or "info"),
        "message": str(data.get("message") or data.get("key") or ""),
        "examples": [str(e) for e in data.get("examples") or []],
    }


def _facts(run: RunFolder) -> list[tuple[str, Facts]]:
    """config.json in cards: the resolved options have a place of their own."""
    names = {
        "model": "Model",
        "data": "Data",
        "loss": "Loss",
        "engine": "Engine",
        "schedule": "Schedule",
        "versions": "Versions",
    }
    cards = [(title, _flat(section(run.config, key))) for key, title in names.items()]
    others = {k: v for k, v in run.config.items() if k not in names and k != "config"}
    cards.append(("Provenance", _flat(others)))
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
        return ", ".join(_words(v) for v in _short(value)) or "none"
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _short(items: Sequence[object], most: int = 24) -> Iterable[object]:
    return items if len(items) <= most else [*items[:most], f"and {len(items) - most} more"]
