"""The doctor on lengths: tokens against the model's context, or characters where no model is given."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from prospect.data.options import DataOptions, OverLong, SpecialTokens
from prospect.doctor.findings import Finding, Level, first, of
from prospect.errors import ModelError, UserError
from prospect.feedback.prompts import prompt_sizes
from prospect.feedback.records import Record, at

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from prospect.data.tokens import TokenReport


@dataclass(frozen=True, slots=True)
class Lengths:
    """`prompts` per record and `completions` per record and completion, in tokens or characters; `kept` says what is
    still there after the policy for over-long rows; `counts` is that policy's report, `report` that of the rows before
    it, both None without a tokenizer."""

    unit: Literal["tokens", "characters"]
    prompts: list[int]
    completions: list[list[int]]
    kept: list[list[bool]]
    max_length: int | None = None
    counts: dict[str, int] | None = None
    report: TokenReport | None = None

    def summary(self) -> dict[str, Any]:
        """Quantiles of prompts, completions and both together."""
        whole = [p + c for p, row in zip(self.prompts, self.completions, strict=True) for c in row]
        quantiles = {
            "prompt": _quantiles(self.prompts),
            "completion": _quantiles([c for row in self.completions for c in row]),
            "row": _quantiles(whole),
        }
        return {"unit": self.unit, "max_length": self.max_length, **quantiles}


def characters(records: Sequence[Record]) -> Lengths:
    """Lengths without a tokenizer: nothing can be over-long."""
    completions = [[len(c.readable) for c in r.completions] for r in records]
    kept = [[True] * len(row) for row in completions]
    return Lengths("characters", prompt_sizes(records), completions, kept)


def tokens(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    options: DataOptions,
) -> Lengths:
    """Lengths in tokens, and what `over_long` would do to the rows of more than `max_length`. Raises and caches as
    `build_trees`."""
    from prospect.data.tokens import tokenise, trees_of

    template, rows = tokenise(records, tokenizer, options)
    whole, report = trees_of(template, records, rows, None, "drop")
    prompts = [len(tree.prompt) for tree in whole]
    completions = [[0 if ids is None else len(ids) for ids in tree.completions] for tree in whole]
    kept = [[size > 0 for size in row] for row in completions]
    counts = {"over_long": 0, "dropped": 0, "cut_prompt": 0, "cut_completion": 0}
    limit = sys.maxsize if options.max_length is None else options.max_length
    long = [i for i, (p, row) in enumerate(zip(prompts, completions, strict=True)) if p + max(row, default=0) > limit]
    if long:
        policy = "drop" if options.over_long == "error" else options.over_long
        trees, cut = trees_of(template, [records[i] for i in long], [rows[i] for i in long], limit, policy)
        for i, tree in zip(long, trees, strict=True):
            kept[i] = [ids is not None for ids in tree.completions]
        counts |= {
            name: value for name, value in asdict(cut).items() if name in ("dropped", "cut_prompt", "cut_completion")
        }
        counts["over_long"] = sum(prompts[i] + size > limit for i in long for size in completions[i])
    return Lengths("tokens", prompts, completions, kept, options.max_length, counts, report)


def broken(error: UserError) -> Finding:
    """Rows that cannot be tokenised."""
    key = "no_template" if isinstance(error, ModelError) else "template"
    return Finding(key, "error", str(error))


def flaws(records: Sequence[Record], lengths: Lengths, special_tokens: SpecialTokens = "text") -> Iterator[Finding]:
    """Where what is trained is not simply what was said; the first example stands in the message."""
    report = lengths.report
    if report is None:
        return
    rows = {flaw: of(count, report.completions) for flaw, count in report.flaws.items()}
    stays = "it stays text, which is safe; --special-tokens token makes tokens of it"
    if special_tokens == "token":
        stays = (
            "it becomes the token (--special-tokens token), so that whoever wrote it can end a turn and open another"
        )
    messages: dict[str, tuple[Level, str]] = {
        "added": (
            "warning",
            "the chat template prints text of its own into {rows} answers, and that would be trained, too. For "
            "thinking models set the template's switch in the rows (often chat_template_kwargs "
            '{{"enable_thinking": false}}), or give the answers with their reasoning; else pass --chat-template FILE',
        ),
        "dropped": (
            "warning",
            "of {rows} answers only a part would be trained: the chat template (of a text prompt: the text) has no "
            "place for the rest. Pass a --chat-template FILE that prints it, or leave it out of the rows",
        ),
        "unprinted": (
            "warning",
            "in {rows} rows the chat template leaves out a message of the prompt. Pass a --chat-template FILE that "
            "prints it, or take it out of the rows",
        ),
        "control": (
            "warning",
            f"{{rows}} rows spell control tokens of this model in their own text. In chats {stays}; in text prompts it "
            "is the token",
        ),
        "lossy": (
            "warning",
            "the tokenizer does not give back the text of {rows} rows (it changes or loses characters), so the model "
            "cannot learn them as they are. Is it the right tokenizer for this data?",
        ),
        "straddled": (
            "info",
            "in {rows} rows a token stands across the end of the prompt and is split there. Harmless where rare; else "
            "move the blank from the prompt's end to the answer's beginning",
        ),
    }
    for flaw, (level, message) in messages.items():
        if flaw in rows:
            examples = report.examples[flaw]
            data = {"completions": report.flaws[flaw]}
            yield Finding(
                flaw,
                level,
                f"{message.format(rows=rows[flaw])}. For example {examples[0]}",
                examples[1:],
                data,
            )
    if report.unread:
        names = ", ".join(f"{name} ({count})" for name, count in sorted(report.unread.items()))
        yield Finding("template_kwargs", "info", f"template_kwargs that the chat template never reads: {names}")


def over_long(records: Sequence[Record], lengths: Lengths, policy: OverLong) -> Iterator[Finding]:
    """What does not fit the context, and what becomes of it."""
    if lengths.counts is None:
        return
    counts, total = lengths.counts, sum(map(len, lengths.completions))
    if lengths.max_length is None:
        return
    if not counts["over_long"]:
        message = f"every row fits into {lengths.max_length} tokens"
        yield Finding("over_long", "ok", message, data=counts)
        return
    examples = [
        f"{at(c)}: {p} + {size} tokens"
        for r, p, row in zip(records, lengths.prompts, lengths.completions, strict=True)
        for c, size in zip(r.completions, row, strict=True)
        if p + size > lengths.max_length
    ]
    message = (
        f"{of(counts['over_long'], total)} rows are longer than {lengths.max_length} tokens; {_fate(counts, policy)}"
    )
    gone = not any(any(row) for row in lengths.kept)
    if gone:
        message += ". Nothing is left to train on: use a model with a longer context, or shorten the rows"
    elif policy != "error":
        message += ". Raise --max-length if the model allows, or choose another --over-long"
    level: Literal["warning", "error"] = "error" if gone or policy == "error" else "warning"
    yield Finding("over_long", level, message, first(examples), counts)


def _fate(counts: dict[str, int], policy: OverLong) -> str:
    if policy == "error":
        return "--over-long error stops at them. Choose drop, cut_prompt or cut_completion"
    said = [
        f"{counts[name]} {what}"
        for name, what in (
            ("cut_prompt", "prompts would be cut"),
            ("cut_completion", "completions would be cut"),
            ("dropped", "rows would be dropped"),
        )
        if counts[name]
    ]
    return f"with --over-long {policy} {' and '.join(said)}"


def _quantiles(values: Sequence[int]) -> dict[str, float]:
    if not values:
        return {}
    points = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
    return {name: float(np.quantile(values, q)) for name, q in points.items()}
