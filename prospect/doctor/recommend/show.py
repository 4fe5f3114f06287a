"""A recommendation for people, and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.text import Text

from prospect.doctor.recommend.case import Case
from prospect.doctor.recommend.facts import Facts
from prospect.doctor.recommend.rules import Recommendation
from prospect.training.console import Console

STYLES = {"high": "green", "medium": "cyan", "low": "yellow"}
LEGEND = (
    "high: tested and significant, or no other choice; medium: published for such a case, or evidence short of "
    "significance; low: nobody has shown it. KTO paper: arXiv 2402.01306. Our tests: two proportions on the counts its "
    "authors published, Holm over model sizes."
)
HOW_TO_READ = (
    "Compare the held-out AUC with its interval in each run's report.html. Where intervals overlap, nothing is "
    "settled. AUC ranks given answers; for new ones read samples: prospect chat --model A --compare B."
)
WIDTH = 110
"""Longest line of a command before it is broken at a flag."""


def show(recommendation: Recommendation, console: Console) -> None:
    """What the data is, the commands, why, and what is not known."""
    width = min(console.width, WIDTH)

    def paragraph(text: str, hang: int = 0, title: str = "", style: str = "bold") -> None:
        """Wrapped here: rich would break paths and pad lines."""
        lines = textwrap.wrap(text, max(30, width - hang), break_long_words=False, break_on_hyphens=False)
        for i, line in enumerate(lines):
            label = f"{title:<{hang}}" if i == 0 else " " * hang
            console.print(Text.assemble((label, style), line), soft_wrap=True)

    def command(line: str) -> None:
        """Never wrapped, so that it can be copied."""
        for part in broken_lines(line, width - 2):
            console.print(Text(f"  {part}", style="green"), soft_wrap=True)

    for i, line in enumerate(facts_in_words(recommendation.case.facts)):
        paragraph(line, 8, "data" if i == 0 else "")
    paragraph(model_in_words(recommendation.case), 8, "model")
    for note in recommendation.notes:
        paragraph(note, 8, "mind", "bold yellow")
    console.print(Text("\nrun", style="bold"))
    for line in recommendation.commands:
        command(line)
    console.print(Text("\nwhy", style="bold"))
    for advice in recommendation.proposals:
        confidence = (advice.confidence, STYLES[advice.confidence])
        console.print(Text.assemble((f"  {advice.name}: {advice.value}", "bold"), "  ", confidence))
        paragraph(f"{advice.reason} [{advice.source}]", 4)
        for other in advice.instead:
            paragraph(f"or: {other}", 4)
    if recommendation.questions:
        console.print(Text("\nnot known, and what would settle it", style="bold"))
    for question in recommendation.questions:
        paragraph(f"{question.topic}: {question.why}. {question.settle}", 2)
        if question.command:
            command(question.command)
    console.print()
    if any(question.command for question in recommendation.questions):
        paragraph(HOW_TO_READ)
    paragraph(LEGEND)


def facts_in_words(facts: Facts) -> Iterator[str]:
    """The facts that the rules looked at."""
    yield f"{facts.path}: {facts.answers} answers to {facts.prompts} prompts, {' and '.join(facts.kinds)}"
    if facts.thumbs:
        sides = " (the sides of pairs)" if facts.kind == "pairs" else ""
        cut = f" (score at or above the {facts.threshold})" if facts.threshold else ""
        ratio = f"{facts.answers / facts.prompts:.1f} answers per prompt, {facts.prompts_with_both} prompts have both"
        per_prompt = "one answer per prompt" if facts.single == facts.prompts else ratio
        yield f"{facts.liked} liked, {facts.disliked} disliked{sides}{cut}; {per_prompt}"
        yield _noise_in_words(facts)
    row, unit = facts.lengths.get("row", {}), facts.lengths.get("unit", "characters")
    if row:
        tokens = f", about {row['median'] / 4:.0f} tokens" if unit == "characters" else ""
        yield f"prompt and answer: median {row['median']:.0f}{tokens}, longest {row['max']:.0f} {unit}"


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


def model_in_words(case: Case) -> str:
    """The model, and how far it counts as fine-tuned."""
    model, stage = case.model, "base" if case.sft_first else case.stage
    tuning = {
        "tuned on this": "taken as fine-tuned on answers like these",
        "tuned": "taken as fine-tuned, but not on this data"
        + ("" if case.after_sft == "no" else " (a guess from its template)"),
        "base": "taken as not fine-tuned",
        "unknown": "fine-tuned or not: unknown (--after-sft)",
    }[stage]
    if model is None:
        return f"none given; {tuning}"
    template = {True: "a chat template", False: "no chat template", None: "no tokenizer"}[model.chat_template]
    return f"{model.name}: {'an adapter, ' if model.adapter else ''}{case.size}, {template}; {tuning}"


def to_json(recommendation: Recommendation) -> dict[str, Any]:
    """The object that `prospect recommend --json` prints."""
    case = recommendation.case
    return {
        "facts": {key: value for key, value in asdict(case.facts).items() if key != "findings"},
        "model": None if case.model is None else asdict(case.model),
        "after_sft": case.after_sft,
        "taken_as": case.stage,
        "proposals": [asdict(advice) for advice in recommendation.proposals],
        "notes": list(recommendation.notes),
        "commands": list(recommendation.commands),
        "questions": [asdict(question) for question in recommendation.questions],
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
