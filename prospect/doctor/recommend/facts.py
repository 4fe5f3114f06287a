"""What the data is, measured: kinds of feedback, counts, balance, contradictions, length. No rule lives here."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from prospect.data.options import DataOptions
from prospect.doctor.check import check
from prospect.doctor.findings import Finding, Findings
from prospect.doctor.recommend.noise import Noise, noise
from prospect.errors import DataError
from prospect.feedback.load import Feedback
from prospect.feedback.prompts import prompt_numbers
from prospect.feedback.records import Record, binary, pair_count, text, threshold_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

Kind = Literal["thumbs", "pairs", "scores", "text"]
AfterSft = Literal["yes", "no", "unknown"]

__all__ = ["AfterSft", "Facts", "Kind", "Model", "measure"]


@dataclass(frozen=True, slots=True)
class Model:
    """What is known of the start model without its weights. None is "not known"; `parameters` of the base where it is
    an adapter."""

    name: str
    parameters: int | None = None
    chat_template: bool | None = None
    adapter: bool = False
    context: int | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """Feedback, from `files` or from memory. `liked` and `disliked` count the rows of the binary view, `liked_weight`
    and `disliked_weight` add their weights; `threshold` is what made thumbs of scores for that. `pairs` are explicit,
    `possible_pairs` those the pair view would find. `groups` are what a split holds together. `middle` counts answers
    that some pairs choose and others reject."""

    path: str
    files: tuple[str, ...]
    format: str
    kind: Kind
    kinds: tuple[Kind, ...]
    prompts: int
    groups: int
    answers: int
    liked: int
    disliked: int
    liked_weight: float
    disliked_weight: float
    threshold: str | None
    distinct_scores: int
    pairs: int
    possible_pairs: int
    imitable: int
    single: int
    prompts_with_both: int
    middle: int
    chats: bool
    noise: Noise
    length: dict[str, Any] | None
    lengths: dict[str, Any]
    over_long: int
    unreadable: int
    findings: tuple[Finding, ...]

    @property
    def thumbs(self) -> int:
        return self.liked + self.disliked

    @property
    def both_classes(self) -> bool:
        return self.liked_weight > 0 and self.disliked_weight > 0

    @property
    def kept(self) -> float:
        """The share of answers that fit the model's context; 1 where that is not known."""
        return 1 - self.over_long / self.answers

    def finding(self, key: str) -> Finding | None:
        return next((f for f in self.findings if f.key == key), None)


def measure(
    feedback: Feedback,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int | None = None,
    chat_template: str | None = None,
    files: Sequence[str] = (),
) -> Facts:
    """The facts of feedback that was loaded from `files`. Raises DataError where it has no row that can be used."""
    records = feedback.records
    every = [c for r in records for c in r.completions]
    if not every:
        why = f": line {feedback.problems[0].line}: {feedback.problems[0].message}" if feedback.problems else ""
        raise DataError(f"no row can be used, so there is nothing to recommend{why}", path=feedback.path)
    kinds = _kinds(records)
    kind = kinds[0]
    threshold = _threshold(records) if kind == "scores" else None
    options = DataOptions(max_length=max_length, chat_template=chat_template, threshold=threshold)
    found = check(feedback, tokenizer=tokenizer, options=options)
    cut = None if threshold is None else threshold_of(records, threshold)
    rows = [row for record in records for row in binary(record, cut)]
    liked = [row.weight for row in rows if row.desirable]
    disliked = [row.weight for row in rows if not row.desirable]
    answers, labels = _by_prompt(records, cut)
    over_long = _data(found, "over_long").get("over_long", 0)
    return Facts(
        path=feedback.path,
        files=tuple(files) or (feedback.path,),
        format=feedback.format,
        kind=kind,
        kinds=kinds,
        prompts=len(answers),
        groups=found.summary["groups"],
        answers=len(every),
        liked=len(liked),
        disliked=len(disliked),
        liked_weight=sum(liked),
        disliked_weight=sum(disliked),
        threshold=threshold,
        distinct_scores=len({c.score for c in every if c.score is not None}),
        pairs=sum(len(r.pairs) for r in records),
        possible_pairs=sum(pair_count(r) for r in records),
        imitable=sum(len(text(r)) for r in records),
        single=sum(n == 1 for n in answers.values()),
        prompts_with_both=sum(len(said) == 2 for said in labels.values()),
        middle=sum(len({p.chosen for p in r.pairs} & {p.rejected for p in r.pairs}) for r in records),
        chats=any(not isinstance(r.prompt, str) for r in records),
        noise=noise(records),
        length=_data(found, "length_confound") or None,
        lengths=found.summary["lengths"],
        over_long=over_long,
        unreadable=len(feedback.problems),
        findings=found.findings,
    )


def _kinds(records: Sequence[Record]) -> tuple[Kind, ...]:
    """What there is, by the number of answers it speaks of; on a tie thumbs before pairs before scores."""
    every = [c for r in records for c in r.completions]
    counts: dict[Kind, int] = {
        "thumbs": sum(c.label is not None for c in every),
        "pairs": sum(len({i for p in r.pairs for i in (p.chosen, p.rejected)}) for r in records),
        "scores": sum(c.score is not None for c in every),
    }
    there = sorted((kind for kind in counts if counts[kind]), key=lambda kind: -counts[kind])
    return tuple(there) or ("text",)


def _threshold(records: Sequence[Record]) -> str | None:
    """The median, or the mean where more than half of the scores are the lowest; None where all are equal."""
    for rule in ("median", "mean"):
        cut = threshold_of(records, rule)
        if len({c.score >= cut for r in records for c in r.completions if c.score is not None}) == 2:
            return rule
    return None


def _by_prompt(records: Sequence[Record], cut: float | None) -> tuple[Counter[int], dict[int, set[bool]]]:
    """Answers per prompt, and which thumbs each prompt has."""
    answers = Counter[int]()
    labels: dict[int, set[bool]] = defaultdict(set)
    for record, key in zip(records, prompt_numbers(records), strict=True):
        answers[key] += len(record.completions)
        labels[key] |= {row.desirable is True for row in binary(record, cut)}
    return answers, labels


def _data(found: Findings, key: str) -> dict[str, Any]:
    return next((f.data for f in found.findings if f.key == key), {})
