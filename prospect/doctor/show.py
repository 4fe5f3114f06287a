"""The doctor in the terminal: findings for people, and rows with their tokens in colour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from prospect.doctor.findings import Findings
from prospect.feedback.records import Completion, Record, at, binary, readable
from prospect.training.console import Console

if TYPE_CHECKING:
    from prospect.data.tokens import Tree

STYLES = {"error": "bold red", "warning": "bold yellow", "info": "cyan", "ok": "green"}
LABELS = {True: ("desirable", "green"), False: ("undesirable", "red"), None: ("no label", "blue")}
MOST_PROMPT = 1200
"""Characters of a prompt that are shown: its end, where the question stands."""
BAR = 30


def print_findings(findings: Findings, console: Console) -> None:
    """The summary as a table, then one paragraph per finding, worst first."""
    console.print(_overview(findings.summary))
    for finding in findings.findings:
        style = STYLES[finding.level]
        console.print(Text.assemble((f"{finding.level:>8} ", style), (f"{finding.key}: ", "bold"), finding.message))
        for example in finding.examples:
            console.print(Text(f"{'':10}{example}", style="dim"))
    counts = [(sum(f.level == level for f in findings.findings), level) for level in ("error", "warning")]
    said = ", ".join(f"{n} {level}{'s' if n > 1 else ''}" for n, level in counts if n)
    console.print(Text(said or "nothing to repair", style="bold" if said else "bold green"))


def show_rows(
    records: Sequence[Record],
    n: int,
    console: Console,
    *,
    trees: Sequence[Tree] | None = None,
    tokenizer: Any = None,
) -> None:
    """The first `n` completions: prompt dim; what is trained in green (desirable), red (undesirable) or blue, with
    "|" between tokens and the end-of-turn token in sight. `trees` are aligned with `records`; without them, the text.
    """
    for place, index, label in islice(_rows(records), n):
        record = records[place]
        completion = record.completions[index]
        name, colour = LABELS[label]
        head = Text.assemble((f"{at(completion)}  ", "bold"), (name, f"bold {colour}"))
        if completion.score is not None:
            head.append(f"  score {completion.score:g}")
        if completion.weight != 1:
            head.append(f"  weight {completion.weight:g}")
        if not completion.complete:
            head.append("  cut off")
        if trees is None or tokenizer is None:
            prompt, said = readable(record.prompt), Text(completion.readable, style=colour)
        else:
            tree = trees[place]
            prompt = str(tokenizer.decode(tree.prompt.tolist()))
            said = _trained(tree, index, completion, tokenizer, colour)
            ids = tree.completions[index]
            head.append(f"  {len(tree.prompt)} + {0 if ids is None else len(ids)} tokens")
        console.print(head)
        console.print(Text(prompt if len(prompt) <= MOST_PROMPT else f"… {prompt[-MOST_PROMPT:]}", style="dim"))
        console.print(said)
        console.print()


def pieces(ids: Sequence[int], tokenizer: Any) -> Iterator[str]:
    """The text of each token; of several where a character is made of more than one."""
    previous = start = 0
    for end in range(1, len(ids) + 1):
        # Decoded behind the piece before it: alone, a SentencePiece token loses its blank.
        before = tokenizer.decode(ids[previous:start])
        piece = str(tokenizer.decode(ids[previous:end]))[len(before) :]
        if "\ufffd" not in piece or end == len(ids):
            yield piece
            previous, start = start, end


def _rows(records: Sequence[Record]) -> Iterator[tuple[int, int, bool | None]]:
    """(record, completion, its thumb), record by record; scores stay without one."""
    for place, record in enumerate(records):
        thumbs = {row.chosen: row.desirable for row in binary(record)}
        for index in range(len(record.completions)):
            yield place, index, thumbs.get(index)


def _trained(tree: Tree, index: int, completion: Completion, tokenizer: Any, colour: str) -> Text:
    ids = tree.completions[index]
    if ids is None:
        return Text(f"[dropped] {completion.readable}", style="dim strike")
    said = Text()
    for k, piece in enumerate(pieces(ids.tolist(), tokenizer)):
        said.append("|" if k else "", style="dim")
        said.append(piece.replace("\n", "\u21b5\n"), style=colour)
    return said


def _overview(summary: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column()
    source = " ".join(str(summary[k]) for k in ("path", "format") if summary[k])
    if source:
        table.add_row("file", Text(source))
    table.add_row("rows", f"{summary['completions']} completions to {summary['prompts']} prompts")
    labels = summary["labels"]
    if any(labels.values()):
        table.add_row("thumbs", f"{labels['desirable']} desirable, {labels['undesirable']} undesirable")
    for name in ("scored", "pairs"):
        if summary[name]:
            table.add_row(name, str(summary[name]))
    weights = summary["weights"].get("auto")
    if weights:
        table.add_row("auto weights", ", ".join(f"{name} {value:.3g}" for name, value in weights.items()))
    lengths = summary["lengths"]
    for name in ("prompt", "completion", "row"):
        if lengths.get(name):
            q = {k: f"{v:.0f}" for k, v in lengths[name].items()}
            text = f"median {q['median']}, 95 % up to {q['p95']}, longest {q['max']} {lengths['unit']}"
            table.add_row("prompt + completion" if name == "row" else name, text)
    if summary["completions_per_prompt"]:
        table.add_row("completions per prompt", _histogram(summary["completions_per_prompt"]))
    return table


def _histogram(counts: dict[str, int]) -> str:
    """One bar per number of completions; the rarely seen large numbers together."""
    rows = list(counts.items())
    shown, rest = rows[:8], rows[8:]
    if rest:
        shown.append((f"{rest[0][0]} or more", sum(n for _, n in rest)))
    most, width = max(n for _, n in shown), max(len(k) for k, _ in shown)
    return "\n".join(f"{k:>{width}} {'█' * max(1, round(BAR * n / most))} {n}" for k, n in shown)
