"""All experiments, as a table in the terminal and as a page with its figures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from rich.table import Table
from rich.text import Text

from prospect.report.svg import Figure
from prospect.training.console import Console
from research.theory.contradiction import both_thumbs, contradiction
from research.theory.sampled import noise, reference_point
from research.theory.tabular import Experiment, Finding
from research.theory.value import gradient, human_value

EXPERIMENTS = (gradient, human_value, contradiction, both_thumbs, noise, reference_point)
COLUMNS = ("claim", "prediction", "measured", "verdict")


def run(seed: int = 0) -> list[Experiment]:
    """Every experiment, in the order of the paper."""
    return [experiment(seed) for experiment in EXPERIMENTS]


def said(finding: Finding) -> str:
    """The verdict as a word."""
    return "holds" if finding.holds else "FAILS"


def failed(experiments: Iterable[Experiment]) -> int:
    """How many predictions did not come true."""
    return sum(not finding.holds for experiment in experiments for finding in experiment.findings)


def show(experiments: Sequence[Experiment], console: Console) -> None:
    """The table of claims, and how many failed."""
    for experiment in experiments:
        table = Table(
            *COLUMNS, title=experiment.title, title_justify="left", title_style="bold", show_lines=True, expand=True
        )
        for finding in experiment.findings:
            verdict = Text(said(finding), style="green" if finding.holds else "bold red")
            # Text, not markup: brackets in a formula are no style.
            table.add_row(Text(finding.claim), Text(finding.prediction), Text(finding.measured), verdict)
        console.print(table)
    count, wrong = sum(len(e.findings) for e in experiments), failed(experiments)
    console.print(Text(f"{count - wrong} of {count} predictions hold", style="bold red" if wrong else "bold green"))


def write(experiments: Sequence[Experiment], out: Path) -> Path:
    """Write theory.html and every figure as an SVG file of its own into the folder `out`; return the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    for experiment in experiments:
        figure = experiment.figure
        (out / f"{figure.slug}.svg").write_text(standalone(figure), encoding="utf-8")
    path = out / "theory.html"
    path.write_text(page(experiments), encoding="utf-8")
    return path


def page(experiments: Sequence[Experiment]) -> str:
    """The page as text."""
    body = "".join(_section(experiment) for experiment in experiments)
    extra = "td, th { text-align: left; vertical-align: top; padding: 6px 18px 6px 0; } figure { max-width: 560px; }"
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Theory · Prospect</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f'<style>{_style()}{extra}</style></head><body><header><p class="brand">Prospect · theory</p>'
        "<h1>Claims, predictions, measurements</h1></header><main>"
        f"{body}</main></body></html>\n"
    )


def _section(experiment: Experiment) -> str:
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    rows = "".join(
        f"<tr><td>{escape(f.claim)}</td><td>{escape(f.prediction)}</td><td>{escape(f.measured)}</td>"
        f"<td>{said(f)}</td></tr>"
        for f in experiment.findings
    )
    figure = experiment.figure
    caption = f"<figcaption>{escape(figure.caption)}</figcaption>"
    chart = f"<figure><h3>{escape(figure.title)}</h3>{figure.svg}{caption}</figure>"
    return f"<section><h2>{escape(experiment.title)}</h2><table><tr>{head}</tr>{rows}</table>{chart}</section>"


def standalone(figure: Figure) -> str:
    """The chart as a file that needs no page around it: with its colours, for light and for dark."""
    rules = re.findall(
        r"^(?::root \{.*?^\}|@media \(prefers-color-scheme: dark\) \{.*?^\}|\.chart [^\n]*)$", _style(), re.M | re.S
    )
    opening, rest = figure.svg.split(">", 1)
    return f"{opening}><style>{' '.join(rules)}</style>{rest}\n"


def _style() -> str:
    return files("prospect.report").joinpath("style.css").read_text(encoding="utf-8")
