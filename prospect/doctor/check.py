"""The data doctor: what is in a feedback file, what is wrong with it, and what to do. Pure: records in, Findings out.

findings = check(load("thumbs.jsonl", keep_going=True))
findings.exit_code        # 2 where something must be repaired before training
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prospect.data.groups import groups
from prospect.data.options import DataOptions
from prospect.data.write import write, write_problems
from prospect.doctor import (
    labels as check_labels,
)
from prospect.doctor import (
    leaks as check_split,
)
from prospect.doctor import (
    lengths as check_lengths,
)
from prospect.doctor import (
    texts as check_text,
)
from prospect.doctor.findings import Finding, Findings, first, worst_first
from prospect.doctor.labels import Thumb
from prospect.doctor.lengths import Lengths
from prospect.errors import UserError
from prospect.feedback.load import Feedback
from prospect.feedback.prompts import prompt_numbers
from prospect.feedback.records import Record, View, binary, threshold_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Finding", "Findings", "check", "split_rows"]


def check(
    feedback: Feedback | Sequence[Record],
    *,
    heldout: Feedback | Sequence[Record] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    options: DataOptions = DataOptions(),
    view: View | None = None,
) -> Findings:
    """Examine feedback; with a tokenizer in tokens against `options.max_length`, else in characters.

    `view` is what a loss will read, None where that is open: what concerns thumbs is looked for where thumbs are read.
    `options` are those of the training. What is found never raises; an impossible threshold does (ConfigError,
    DataError).
    """
    records = _records(feedback)
    if not records:
        nothing = Finding("no_rows", "error", "there is no row to train on")
        return Findings(_summary(feedback, records, [], [], None, {}), worst_first([*_rows(feedback), nothing]))
    found = list(_rows(feedback))
    try:
        lengths = (
            check_lengths.characters(records)
            if tokenizer is None
            else check_lengths.tokens(records, tokenizer, options)
        )
    except UserError as error:
        found.append(check_lengths.broken(error))
        lengths = check_lengths.characters(records)
    prompts = prompt_numbers(records)
    judged = thumbs(records, prompts, lengths, options.threshold)
    every, fitting = [t for t, _ in judged], [t for t, kept in judged if kept]
    weights, balance = check_labels.balance(fitting)
    if view in (None, "binary"):  # pairs and texts have no partners, classes or class weights
        found += check_labels.classes(records, every, fitting)
        found += balance
        found += check_labels.partners(every)
    found += check_labels.contradictions(every, records)
    found += check_labels.length_confound(every, lengths.unit)
    found += check_lengths.flaws(records, lengths, options.special_tokens)
    found += check_lengths.over_long(records, lengths, options.over_long)
    if getattr(tokenizer, "chat_template", None):
        found += check_text.untemplated(records)
    together = groups(records)
    found += check_text.duplicates(records, prompts)
    found += check_split.near_prompts(records, together)
    found += check_split.leaks(records, together)
    found += check_text.empty(records)
    found += check_text.templated(every)
    if heldout is not None:
        apart = _records(heldout)
        found += check_split.held_out(records, apart, groups([*records, *apart]))
    summary = _summary(feedback, records, prompts, every, lengths, weights)
    return Findings(summary | {"groups": len(set(together.group))}, worst_first(found))


def thumbs(
    records: Sequence[Record], prompts: Sequence[int], lengths: Lengths, threshold: str | None
) -> list[tuple[Thumb, bool]]:
    """Every row of the binary view, and whether it survives the policy for over-long rows. `prompts` are the records'
    `prompt_numbers`."""
    cut = None if threshold is None else threshold_of(records, threshold)
    found: list[tuple[Thumb, bool]] = []
    for record, number, sizes, kept in zip(records, prompts, lengths.completions, lengths.kept, strict=True):
        for row in binary(record, cut):
            thumb = Thumb(record.completions[row.chosen], number, row.desirable is True, row.weight, sizes[row.chosen])
            found.append((thumb, kept[row.chosen]))
    return found


def split_rows(feedback: Feedback, path: str | Path) -> tuple[Path | None, Path | None]:
    """`prospect check --keep-going OUT.jsonl`: the good rows go to OUT.jsonl as Prospect JSONL, the bad ones with their
    reasons to OUT.bad.jsonl. Returns both paths, None for what has no row and is not written."""
    good = Path(path)
    name, dot, ending = good.name.partition(".")
    bad = good.with_name(f"{name}.bad{dot}{ending}")
    if feedback.records:
        write(feedback.records, good)
    if feedback.problems:
        write_problems(feedback.problems, bad)
    return good if feedback.records else None, bad if feedback.problems else None


def _records(feedback: Feedback | Sequence[Record]) -> Sequence[Record]:
    return feedback.records if isinstance(feedback, Feedback) else feedback


def _rows(feedback: Feedback | Sequence[Record]) -> Iterator[Finding]:
    """What loading left out or did not use."""
    if not isinstance(feedback, Feedback):
        return
    if feedback.problems:
        count = len(feedback.problems)
        message = (
            f"{count} of {feedback.rows} rows cannot be read. Repair them, or go on without: --keep-going OUT.jsonl"
        )
        examples = first([f"line {p.line}: {p.message}" for p in feedback.problems])
        yield Finding("bad_rows", "error", message, examples, {"rows": count})
    for note in feedback.notes:
        yield Finding("not_read", "info", note)


def _summary(
    feedback: Feedback | Sequence[Record],
    records: Sequence[Record],
    prompts: Sequence[int],
    judged: Sequence[Thumb],
    lengths: Lengths | None,
    weights: dict[str, Any],
) -> dict[str, Any]:
    loaded = feedback if isinstance(feedback, Feedback) else None
    per_prompt = Counter[int]()
    for record, prompt in zip(records, prompts, strict=True):
        per_prompt[prompt] += len(record.completions)
    histogram = Counter(per_prompt.values())
    every = [c for r in records for c in r.completions]
    up = sum(t.desirable for t in judged)
    return {
        "path": loaded.path if loaded else None,
        "format": loaded.format if loaded else None,
        "rows": loaded.rows if loaded else len(every),
        "prompts": len(per_prompt),
        "completions": len(every),
        "completions_per_prompt": {str(n): histogram[n] for n in sorted(histogram)},
        "labels": {"desirable": up, "undesirable": len(judged) - up},
        "scored": sum(c.score is not None for c in every),
        "pairs": sum(len(r.pairs) for r in records),
        "weights": weights,
        "lengths": lengths.summary() if lengths else {},
    }
