"""`prospect losses`: the loss table for people, and one row of it explained by its own docstrings."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from rich.padding import Padding
from rich.table import Table
from tyro.conf import Positional, arg

from prospect.cli.options import parse
from prospect.losses.registry import LOSSES, MODIFIERS, REFERENCE_POINTS, Function, Loss, defaults, find
from prospect.training.console import Console

VIEWS = {
    "binary": "thumbs",
    "pairs": "pairs",
    "scores": "scores",
    "groups": "groups of scored answers",
    "text": "answers to imitate",
}
COUPLES = {
    "group": "one answer's loss depends on the other answers to its prompt",
    "step": "one answer's loss depends on the whole step's",
}


@dataclass(frozen=True)
class LossesOptions:
    """List the losses, modifiers and reference points, or explain one of them."""

    name: Annotated[Positional[str], arg(metavar="NAME")] = ""
    """What to explain: a loss, a mixture, your own my_losses.py:my_loss, a modifier or a reference point."""
    json: bool = False
    """The list for machines."""
    markdown: bool = False
    """The list with every explanation, as docs/losses.md has it."""


def losses(arguments: list[str]) -> int:
    """`prospect losses [NAME]`"""
    options = parse(LossesOptions, arguments, "losses")
    console = Console(soft_wrap=True, highlight=False)
    if options.json:
        rows = [LOSSES[options.name]] if options.name in LOSSES else LOSSES.values()
        print(json.dumps([_plain(row) for row in rows], indent=1))
    elif options.markdown:
        print(markdown(), end="")
    elif options.name in MODIFIERS:
        modifier = MODIFIERS[options.name]
        facts = {"source": modifier.paper, "arguments": _values(defaults(modifier)) or "none"}
        texts = [("", _doc(function)) for function in modifier.functions]
        _explain(console, f"--modify {modifier.name}", modifier.title, facts, texts)
    elif options.name in REFERENCE_POINTS:
        point = REFERENCE_POINTS[options.name]
        rest = _doc(point.function).partition("\n")[2].strip()  # the title is its first line
        _explain(console, f"--reference-point {point.name}", point.title, {}, [("", rest)])
    elif options.name:
        row = find(options.name)
        _explain(console, row.name, row.title, _facts(row), _terms(row))
    else:
        _list(Console(highlight=False))
    return 0


def _list(console: Console) -> None:
    """Every name with what it is, in 80 columns; arguments and papers are in what explains one."""
    for family, rows in _families().items():
        named = {f"{row.name}{' *' if row.halo else ''}": f"{row.title} ({VIEWS[row.view]})" for row in rows}
        _section(console, family.capitalize(), named)
    _section(console, "Modifiers: --modify", {row.name: row.title for row in MODIFIERS.values()})
    _section(console, "Reference points: --reference-point", {p.name: p.title for p in REFERENCE_POINTS.values()})
    console.print("* a HALO, a human-aware loss (docs/halo.md)")
    console.print(f'{len(LOSSES)} losses. "prospect losses NAME" explains one; mixtures: --loss dpo:0.8,sft:1')


def _families() -> dict[str, list[Loss]]:
    families: dict[str, list[Loss]] = {}
    for row in LOSSES.values():
        families.setdefault(row.family, []).append(row)
    return families


def _section(console: Console, title: str, named: dict[str, str]) -> None:
    rows = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    rows.add_column(no_wrap=True, min_width=21)
    rows.add_column()
    for name, what in named.items():
        rows.add_row(name, what)
    console.print(title, style="bold")
    console.print(Padding(rows, (0, 0, 1, 2)))


def _explain(console: Console, name: str, title: str, facts: dict[str, str], texts: Sequence[tuple[str, str]]) -> None:
    console.print(f"[bold]{name}[/]: {title}")
    for fact, value in facts.items():
        console.print(f"  {fact + ':':17}{value}", markup=False)
    for heading, text in texts:
        console.print()
        if heading:
            console.print(heading, style="bold")
        console.print(text, markup=False)


def _facts(row: Loss) -> dict[str, str]:
    inputs = ", ".join(dict.fromkeys(name for term in row.terms for name in term.reads))
    facts = {
        "source": row.paper or "no single one",
        "reads": f"{VIEWS[row.view]}: {inputs}" + ("" if row.needs_reference else "; no reference model"),
        "HALO": "yes" if row.halo else "no (docs/halo.md says why)",
        "reference point": row.reference_point.name if row.reference_point else None,
        "learning rate": f"{row.learning_rate:g}, ten times that for LoRA",
        "arguments": _values(defaults(row)) or "none",
        "couples": COUPLES.get(row.couples),
    }
    return {name: value for name, value in facts.items() if value}


def _terms(row: Loss) -> list[tuple[str, str]]:
    """Each term's place in the objective, and its function's docstring."""
    texts = []
    for number, term in enumerate(row.terms, start=1):
        side = {"desirable": "chosen", "undesirable": "rejected"} if row.view == "pairs" else {}
        about = "" if term.rows == "all" else f" of the {side.get(term.rows, term.rows)} answers"
        count = f" (term {number} of {len(row.terms)})" if len(row.terms) > 1 else ""
        times = "" if term.coefficient == 1 else f"{term.coefficient:g} times "
        heading = f"{times}The mean per {term.unit.removesuffix('s')}{about}{count}".capitalize()
        texts.append((heading, _doc(term.function)))
    return texts


def markdown() -> str:
    """The whole table for docs/losses.md."""
    lines: list[str] = []
    for family, rows in _families().items():
        lines += [
            f"## {family.capitalize()}",
            "",
            "| loss | what it is | HALO | arguments | paper |",
            "|---|---|---|---|---|",
        ]
        for row in rows:
            facts = (row.title, "yes" if row.halo else "no", _values(defaults(row)), row.paper)
            lines.append(f"| [{row.name}](#{row.name}) | {' | '.join(facts)} |")
        for row in rows:
            lines += ["", f"### {row.name}", "", f"{row.title}.", ""]
            lines += [f"- {name}: {value}" for name, value in _facts(row).items()]
            for heading, text in _terms(row):
                lines += ["", f"{heading}:", "", *("    " + line if line else "" for line in text.splitlines())]
        lines.append("")
    lines += ["## Modifiers", "", "| --modify | what it does | arguments | paper |", "|---|---|---|---|"]
    lines += [f"| {m.name} | {m.title} | {_values(defaults(m))} | {m.paper} |" for m in MODIFIERS.values()]
    lines += ["", "## Reference points", "", "| --reference-point | z0 is |", "|---|---|"]
    lines += [f"| {point.name} | {point.title} |" for point in REFERENCE_POINTS.values()]
    return "\n".join(lines) + "\n"


def _doc(function: Function) -> str:
    return inspect.getdoc(function) or "(it has no docstring)"


def _values(arguments: dict[str, Any]) -> str:
    """Arguments with their values, in words."""

    def words(value: Any) -> str:
        return "required" if value is inspect.Parameter.empty else value if isinstance(value, str) else f"{value:g}"

    return ", ".join(f"{name} {words(value)}" for name, value in arguments.items())


def _plain(row: Loss) -> dict[str, Any]:
    """A row for machines."""
    paper, _, equation = row.paper.partition(", ")
    return {
        "name": row.name,
        "family": row.family,
        "view": row.view,
        "title": row.title,
        "paper": paper,
        "equation": equation,
        "halo": row.halo,
        "reads": sorted(row.reads),
        "reference": row.needs_reference,
        "reference_point": row.reference_point.name if row.reference_point else None,
        "arguments": defaults(row),
        "learning_rate": row.learning_rate,
    }
