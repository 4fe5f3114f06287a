"""A recommendation for people, and as JSON."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import Any

from rich.text import Text

from prospect.doctor.recommend.facts import Facts, Model
from prospect.doctor.recommend.proposal import Recommendation, size
from prospect.training.console import Console

STYLES = {"high": "green", "medium": "cyan", "low": "yellow"}
LEGEND = (
    "high: tested and significant, or no other choice; medium: published for such a case, or evidence short of "
    "significance; low: nobody has shown it. KTO paper: arXiv 2402.01306. Our tests: two proportions on the counts its "
    "authors published, Holm over model sizes."
)
HOW_TO_READ = (
    "Compare the held-out AUC with its interval in each run's report.html. Where intervals overlap, nothing is "
    "settled. "
    "AUC ranks given answers; for new ones read samples: prospect chat --model A --compare B."
)
WIDTH = 110
"""Longest line of a command before it is broken at a flag."""


def show(found: Recommendation, console: Console) -> None:
    """What the data is, the commands, why, and what is not known."""
    case, width = found.case, min(console.width, WIDTH)
    head = [
        ("data", facts_in_words(case.facts)),
        ("model", [model_in_words(case.model, case.after_sft, case.stage, case.sft_first)]),
    ]
    for title, rows in head:
        for i, row in enumerate(rows):
            _print(console, row, width, hang=8, title=title if i == 0 else "")
    for note in found.notes:
        _print(console, note, width, hang=8, title="mind", style="bold yellow")
    console.print(Text("\nrun", style="bold"))
    for command in found.commands:
        _command(console, command, width)
    console.print(Text("\nwhy", style="bold"))
    for proposal in found.proposals:
        console.print(
            Text.assemble(
                (f"  {proposal.name}: {proposal.value}", "bold"),
                "  ",
                (proposal.confidence, STYLES[proposal.confidence]),
            )
        )
        _print(console, f"{proposal.reason} [{proposal.source}]", width, hang=4)
        for other in proposal.instead:
            _print(console, f"or: {other}", width, hang=4)
    if found.questions:
        console.print(Text("\nnot known, and what would settle it", style="bold"))
    for question in found.questions:
        text = f"{question.topic}: {question.why}. {question.settle}"
        _print(console, text, width, hang=2)
        if question.command:
            _command(console, question.command, width)
    console.print()
    if any(question.command for question in found.questions):
        _print(console, HOW_TO_READ, width)
    _print(console, LEGEND, width)


def facts_in_words(facts: Facts) -> list[str]:
    """The facts that the rules looked at."""
    said = [f"{facts.path}: {facts.answers} answers to {facts.prompts} prompts, {' and '.join(facts.kinds)}"]
    if facts.thumbs:
        cut = f" (score at or above the {facts.threshold})" if facts.threshold else ""
        sides = " (the sides of pairs)" if facts.kind == "pairs" else ""
        said.append(f"{facts.liked} liked, {facts.disliked} disliked{sides}{cut}; {_per_prompt(facts)}")
        said.append(_noise_in_words(facts))
    row, unit = facts.lengths.get("row", {}), facts.lengths.get("unit", "characters")
    if row:
        tokens = f", about {row['median'] / 4:.0f} tokens" if unit == "characters" else ""
        said.append(f"prompt and answer: median {row['median']:.0f}{tokens}, longest {row['max']:.0f} {unit}")
    return said


def _per_prompt(facts: Facts) -> str:
    if facts.single == facts.prompts:
        return "one answer per prompt"
    with_both = f"{facts.prompts_with_both} prompts have both"
    return f"{facts.answers / facts.prompts:.1f} answers per prompt, {with_both}"


def _noise_in_words(facts: Facts) -> str:
    noise = facts.noise
    circles = f"; {noise.circles} of {noise.triples} compared triples run in a circle" if noise.triples else ""
    if facts.kind == "scores":
        return "noise of the scores: not known"
    if noise.rate is not None and noise.low is not None and noise.high is not None:
        interval = f"{100 * noise.rate:.0f} % wrong [{100 * noise.low:.0f}, {100 * noise.high:.0f}]"
        return f"noise: {interval}, from {noise.repeated} things judged more than once{circles}"
    if noise.contested:
        return f"noise: {noise.contested} of {noise.judged} judged both ways, a rate cannot be told{circles}"
    return f"noise: not known, nothing is judged twice{circles}"


def model_in_words(model: Model | None, after_sft: str, stage: str, sft_first: bool = False) -> str:
    """The model, and what it was taken for."""
    taken = {
        "tuned on this": "fine-tuned on answers like these",
        "tuned": "fine-tuned, but not on this data" + ("" if after_sft == "no" else " (a guess from its template)"),
        "base": "not fine-tuned",
        "unknown": "fine-tuned or not: unknown (--after-sft)",
    }["base" if sft_first else stage]
    if model is None:
        return f"none given; taken as {taken}" if stage != "unknown" else f"none given; {taken}"
    known = "size not known" if model.parameters is None else size(model.parameters)
    template = {True: "a chat template", False: "no chat template", None: "no tokenizer"}[model.chat_template]
    adapter = "an adapter, " if model.adapter else ""
    return f"{model.name}: {adapter}{known}, {template}; {taken if stage == 'unknown' else f'taken as {taken}'}"


def to_json(found: Recommendation) -> dict[str, Any]:
    """The object that `prospect recommend --json` prints."""
    case = found.case
    facts = {k: v for k, v in asdict(case.facts).items() if k != "findings"}
    return {
        "facts": facts,
        "model": None if case.model is None else asdict(case.model),
        "after_sft": case.after_sft,
        "taken_as": case.stage,
        "proposals": [asdict(p) for p in found.proposals],
        "notes": list(found.notes),
        "commands": list(found.commands),
        "questions": [asdict(q) for q in found.questions],
    }


def broken_lines(command: str, width: int = WIDTH) -> list[str]:
    """A command in lines that a shell reads as one, broken before flags."""
    lines: list[str] = []
    current = ""
    for word in command.replace(" --", "\n--").split("\n"):
        if current and len(current) + 1 + len(word) > width - 2:
            lines.append(f"{current} \\")
            current = f"    {word}"
        else:
            current = f"{current} {word}" if current else word
    return [*lines, current]


def _print(console: Console, text: str, width: int, hang: int = 0, title: str = "", style: str = "bold") -> None:
    """Wrapped here: rich would break paths and pad lines."""
    room = max(30, width - hang)
    for i, row in enumerate(textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)):
        label = f"{title:<{hang}}" if i == 0 else " " * hang
        console.print(Text.assemble((label, style), row), soft_wrap=True)


def _command(console: Console, command: str, width: int) -> None:
    for part in broken_lines(command, width - 2):
        # Never wrapped, so that it can be copied.
        console.print(Text(f"  {part}", style="green"), soft_wrap=True)
