"""The doctor in the terminal: findings for people, and rows with their tokens in colour."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from prospect.doctor.findings import Findings
from prospect.feedback.load import describe_parts
from prospect.feedback.records import Record, at, binary, cite, readable
from prospect.training.console import Console

if TYPE_CHECKING:
    from prospect.data.dataset import Tree

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
    counts = Counter(finding.level for finding in findings.findings)
    end = ", ".join(f"{counts[x]} {x}{'s' if counts[x] > 1 else ''}" for x in ("error", "warning") if counts[x])
    console.print(Text(end or "nothing to repair", style="bold" if end else "bold green"))


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
        if completion.target:
            head.append("  target " + ", ".join(f"{cite(text, 20)} {share:g}" for text, share in completion.target))
        prompt, answer = readable(record.prompt), Text(completion.readable, style=colour)
        if trees is not None and tokenizer is not None:
            tree, ids = trees[place], trees[place].completions[index]
            prompt = str(tokenizer.decode(tree.prompt.tolist()))
            if ids is None:
                answer = Text(f"[dropped] {completion.readable}", style="dim strike")
            else:
                answer = Text("|", style="dim").join(
                    Text(piece.replace("\n", "\u21b5\n"), style=colour) for piece in pieces(ids.tolist(), tokenizer)
                )
            head.append(f"  {len(tree.prompt)} + {0 if ids is None else len(ids)} tokens")
        console.print(head)
        console.print(Text(prompt if len(prompt) <= MOST_PROMPT else f"… {prompt[-MOST_PROMPT:]}", style="dim"))
        console.print(answer)
        console.print()


def _rows(records: Sequence[Record]) -> Iterator[tuple[int, int, bool | None]]:
    """(record, completion, its thumb), record by record; scores stay without one."""
    for place, record in enumerate(records):
        thumbs = {row.branches[0]: row.desirable for row in binary(record)}
        for index in range(len(record.completions)):
            yield place, index, thumbs.get(index)


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


def _overview(summary: dict[str, Any]) -> Table:
    """The rows of a summary that have something to say."""
    up, down = (summary["labels"][side] for side in ("desirable", "undesirable"))
    lengths = summary["lengths"]
    several = describe_parts(summary["sources"])
    rows = {
        "file": "" if several else " ".join(str(summary[key]) for key in ("path", "format") if summary[key]),
        "files": "\n".join(several),
        "rows": f"{summary['completions']} completions to {summary['prompts']} prompts",
        "thumbs": f"{up} desirable, {down} undesirable" if up or down else "",
        "scored": str(summary["scored"] or ""),
        "pairs": str(summary["pairs"] or ""),
        "auto weights": ", ".join(f"{name} {value:.3g}" for name, value in summary["weights"].get("auto", {}).items()),
    }
    for key, name in (("prompt", "prompt"), ("completion", "completion"), ("row", "prompt + completion")):
        if quantiles := lengths.get(key):
            rows[name] = (
                f"median {quantiles['median']:.0f}, 95 % up to {quantiles['p95']:.0f}, longest {quantiles['max']:.0f} "
                f"{lengths['unit']}"
            )
    rows["completions per prompt"] = _histogram(summary["completions_per_prompt"])
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in rows.items():
        if text:
            table.add_row(name, Text(text))
    return table


def _histogram(counts: dict[str, int]) -> str:
    """One bar per number of completions; the rarely seen large numbers together."""
    if not counts:
        return ""
    rows = list(counts.items())
    shown, rest = rows[:8], rows[8:]
    if rest:
        shown.append((f"{rest[0][0]} or more", sum(n for _, n in rest)))
    most, width = max(n for _, n in shown), max(len(k) for k, _ in shown)
    return "\n".join(f"{k:>{width}} {'█' * max(1, round(BAR * n / most))} {n}" for k, n in shown)
