"""The doctor on lengths and tokens: what the context, the chat template and the tokenizer make of the rows."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from prospect.data.dataset import TokenReport, tokenise, trees_of
from prospect.data.options import DataOptions, OverLong, SpecialTokens
from prospect.doctor.findings import Measurement, of
from prospect.feedback.records import Completion, Record, at, cite_end, prompt_sizes, readable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Lengths:
    """`prompts` per record and `completions` per record and completion, in tokens or characters; `fits` says what is
    left by the policy for over-long rows; `counts` is that policy's report, `report` that of the rows before it, both
    None without a tokenizer."""

    unit: Literal["tokens", "characters"]
    prompts: list[int]
    completions: list[list[int]]
    fits: list[list[bool]]
    max_length: int | None = None
    counts: dict[str, int] | None = None
    report: TokenReport | None = None

    def summary(self) -> dict[str, Any]:
        """Quantiles of prompts, completions and both together."""
        sizes = {
            "prompt": self.prompts,
            "completion": [c for row in self.completions for c in row],
            "row": [p + c for p, row in zip(self.prompts, self.completions, strict=True) for c in row],
        }
        levels = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
        quantiles = {
            key: {name: float(np.quantile(values, level)) for name, level in levels.items()} if values else {}
            for key, values in sizes.items()
        }
        return {"unit": self.unit, "max_length": self.max_length, **quantiles}


def characters(records: Sequence[Record]) -> Lengths:
    """Lengths without a tokenizer: nothing can be over-long."""
    completions = [[len(c.readable) for c in r.completions] for r in records]
    return Lengths("characters", prompt_sizes(records), completions, [[True] * len(row) for row in completions])


def tokens(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    options: DataOptions,
) -> Lengths:
    """Lengths in tokens, and what `options` would do to the rows of more than `max_length`. Raises and caches as
    `build_trees`."""
    template, rows = tokenise(records, tokenizer, options)
    whole, report = trees_of(template, records, rows, None, "drop")
    prompts = [len(tree.prompt) for tree in whole]
    completions = [[0 if ids is None else len(ids) for ids in tree.completions] for tree in whole]
    fits = [[size > 0 for size in row] for row in completions]
    limit = sys.maxsize if options.max_length is None else options.max_length
    long = [i for i, (p, row) in enumerate(zip(prompts, completions, strict=True)) if p + max(row, default=0) > limit]
    policy = "drop" if options.over_long == "error" else options.over_long
    trees, cut = trees_of(template, [records[i] for i in long], [rows[i] for i in long], limit, policy)
    for i, tree in zip(long, trees, strict=True):
        fits[i] = [ids is not None for ids in tree.completions]
    counts = {"over_long": sum(prompts[i] + size > limit for i in long for size in completions[i])}
    counts |= {name: asdict(cut)[name] for name in ("dropped", "cut_prompt", "cut_completion")}
    return Lengths("tokens", prompts, completions, fits, options.max_length, counts, report)


def over_long(records: Sequence[Record], lengths: Lengths, policy: OverLong) -> Iterator[Measurement]:
    """What does not fit the context, and what becomes of it."""
    counts, longest = lengths.counts, lengths.max_length
    if counts is None or longest is None:
        return
    examples = [
        f"{at(c)}: {p} + {size} tokens"
        for r, p, row in zip(records, lengths.prompts, lengths.completions, strict=True)
        for c, size in zip(r.completions, row, strict=True)
        if p + size > longest
    ]
    fates = {
        "cut_prompt": "prompts would be cut",
        "cut_completion": "completions would be cut",
        "dropped": "rows would be dropped",
    }
    fate = " and ".join(f"{counts[name]} {words}" for name, words in fates.items() if counts[name])
    words = {
        "share": of(counts["over_long"], sum(map(len, lengths.completions))),
        "max_length": longest,
        "policy": policy,
        "nothing_left": not any(map(any, lengths.fits)),
        "fate": "--over-long error stops at them. Choose drop, cut_prompt or cut_completion"
        if policy == "error"
        else f"with --over-long {policy} {fate}",
    }
    yield Measurement("over_long", counts, examples, words)


def flaws(report: TokenReport, special_tokens: SpecialTokens) -> Iterator[Measurement]:
    """Where the trained ids are not simply the text of the row; the first example stands in the message."""
    for flaw in ("added", "dropped", "unprinted", "control", "lossy", "straddled"):
        if count := report.flaws.get(flaw, 0):
            example, *more = report.examples[flaw]
            words = {"share": of(count, report.completions), "example": example, "special_tokens": special_tokens}
            yield Measurement(flaw, {"completions": count}, more, words)
    if report.unread:
        names = ", ".join(f"{name} ({count})" for name, count in sorted(report.unread.items()))
        yield Measurement("template_kwargs", words={"names": names})


def untemplated(records: Sequence[Record]) -> Iterator[Measurement]:
    """Prompts of text where the model has a chat template: its turns would be missing from what is trained."""
    plain = [record for record in records if isinstance(record.prompt, str) and record.prompt]
    if plain:
        trained = readable(plain[0].prompt) + "".join(c.readable for c in plain[0].completions[:1])
        share = of(len(plain), len(records))
        yield Measurement("text_for_chat", {"prompts": len(plain)}, [f"trained: {cite_end(trained)}"], {"share": share})


def blanks(records: Sequence[Record]) -> Iterator[Measurement]:
    """Answers without content, and those that were cut off."""
    every = [c for r in records for c in r.completions]
    groups = {"empty": [c for c in every if _is_blank(c)], "incomplete": [c for c in every if not c.complete]}
    for key, group in groups.items():
        if group:
            share = of(len(group), len(every))
            yield Measurement(key, {"completions": len(group)}, [at(c) for c in group], {"share": share})


def _is_blank(completion: Completion) -> bool:
    content = completion.content
    if isinstance(content, str):
        return not content.strip()
    text = content.get("content")
    rest = any(value for key, value in content.items() if key not in ("role", "content"))
    return not rest and not (text.strip() if isinstance(text, str) else text)
