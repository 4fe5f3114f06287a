"""What the doctor measures, finding by finding.

thumbs     classes and their weights, contradictions, partners for z0, length as a confound
lengths    what the context, the chat template and the tokenizer make of the rows
repeats    answers, phrases and prompts that come again, and what a split by row or a held-out file gives away
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import exp, lgamma
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from prospect.data.dataset import TokenReport, tokenise, trees_of
from prospect.data.options import DataOptions, OverLong, SpecialTokens
from prospect.data.split import Groups, near_twins, words
from prospect.doctor.findings import Measurement, of
from prospect.evaluate.statistics import clustered_auc
from prospect.feedback import records as views
from prospect.feedback.records import EXAMPLES, Completion, Example, Record, at, cite, cite_end, prompt_sizes, readable
from prospect.losses.unpaired import balanced_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Thumb:
    """One row of the binary view. `prompt` numbers the distinct prompts; `length` is in tokens or characters; `fits`
    says whether the row survives the policy for over-long ones."""

    completion: Completion
    prompt: int
    desirable: bool
    weight: float
    length: int
    fits: bool


def classes(records: Sequence[Record], thumbs: Sequence[Thumb]) -> Iterator[Measurement]:
    """Which labels there are: both, one only, none."""
    every = [c for r in records for c in r.completions]
    up, scored = sum(t.desirable for t in thumbs), sum(c.score is not None for c in every)
    counts = {"desirable": up, "undesirable": len(thumbs) - up}
    words = {"thumbs": len(thumbs), "scored": scored, "share": of(scored, len(every))}
    if thumbs and 0 in counts.values():
        yield Measurement("one_class", counts, words=words)
        return
    yield Measurement("labels", counts, words=words)
    fitting = Counter("desirable" if t.desirable else "undesirable" for t in thumbs if t.fits)
    if len(fitting) == 1:
        yield Measurement("one_class", dict(fitting), words={"one": next(iter(fitting))})
    judged = {id(t.completion) for t in thumbs}
    silent = [c for c in every if id(c) not in judged]
    if thumbs and silent:
        words = {"share": of(len(silent), len(every))}
        yield Measurement("unjudged", {"count": len(silent)}, [at(c) for c in silent], words)


def scored_groups(records: Sequence[Record]) -> Iterator[Measurement]:
    """The prompts whose scored answers losses on groups compare."""
    together = [group for number, record in enumerate(records) if (group := views.groups(record, tree=number))]
    if together:
        equal = len(views.without_spread(row for group in together for row in group))
        counts = {"prompts": len(together), "equal": equal}
        yield Measurement("scored_groups", counts, words={"share": of(len(together), len(records))})


def for_one_loss(records: Sequence[Record]) -> Iterator[Measurement]:
    """What rows say for a single loss: scores of the reference's own answers, and targets."""
    sampled, every = sum(bool(r.reference_scores) for r in records), [c for r in records for c in r.completions]
    aimed = sum(bool(c.target) for c in every)
    if sampled:
        yield Measurement("reference_scores", {"count": sampled}, words={"share": of(sampled, len(records))})
    if aimed:
        yield Measurement("targets", {"count": aimed}, words={"share": of(aimed, len(every))})


def auto_weights(up: float, down: float) -> dict[str, float]:
    """The class weights that training sets by itself for such sums of weights."""
    sides = ((True, up), (False, down))
    return balanced_weights([Example("", 0, (0,), desirable, weight) for desirable, weight in sides])


def class_weights(thumbs: Sequence[Thumb]) -> dict[str, Any]:
    """Sums of weights per class of what fits, and where both are there their ratio and the `auto` weights."""
    up = sum(t.weight for t in thumbs if t.fits and t.desirable)
    down = sum(t.weight for t in thumbs if t.fits and not t.desirable)
    if up == 0 or down == 0:
        return {"desirable": up, "undesirable": down}
    return {"desirable": up, "undesirable": down, "ratio": up / down, "auto": auto_weights(up, down)}


def balance(thumbs: Sequence[Thumb], weights: dict[str, Any]) -> Iterator[Measurement]:
    """Rows without weight, and `class_weights` by Eq. 9 of arXiv 2402.01306 (KTO): with lambdas in front, the ratio
    should lie in [1, 3/2]."""
    fitting = [t for t in thumbs if t.fits]
    idle = [at(t.completion) for t in fitting if t.weight == 0]
    if idle:
        yield Measurement("zero_weight", examples=idle, words={"share": of(len(idle), len(fitting))})
    if "ratio" in weights:
        ratio = weights["ratio"]
        rare = "desirable" if ratio < 1 else "undesirable"
        low, high = (1 / ratio, 1.5 / ratio) if ratio < 1 else (ratio / 1.5, ratio)
        side = f"{rare}_weight"
        words = {"rare": rare, "side": side, "weight": weights["auto"][side], "low": low, "high": high}
        yield Measurement("balance", weights, words=words)


def contradictions(thumbs: Sequence[Thumb], records: Sequence[Record]) -> Iterator[Measurement]:
    """The same answer to the same prompt with both thumbs; pairs that prefer both ways, or an answer over itself."""
    from_pairs = {id(r.completions[i]) for r in records for p in r.pairs for i in (p.chosen, p.rejected)}
    by_answer: dict[tuple[int, str], list[Thumb]] = defaultdict(list)
    for thumb in thumbs:
        # In pairs an answer may well be better than one and worse than another.
        if id(thumb.completion) not in from_pairs:
            by_answer[thumb.prompt, thumb.completion.key].append(thumb)
    torn = [group for group in by_answer.values() if len({t.desirable for t in group}) == 2]
    if torn:
        sides = [[next(t.completion for t in group if t.desirable is side) for side in (True, False)] for group in torn]
        data = {"answers": len(torn), "rows": sum(map(len, torn))}
        yield Measurement("contradictions", data, [cite_both(good, bad, good) for good, bad in sides])
    equal, reversed_ = [], []
    for record in records:
        preferred: dict[tuple[str, str], Completion] = {}
        for pair in record.pairs:
            better, worse = record.completions[pair.chosen], record.completions[pair.rejected]
            if better.key == worse.key:
                equal.append(cite_both(better, worse, better))
            elif (worse.key, better.key) in preferred:
                reversed_.append(cite_both(preferred[worse.key, better.key], better, better))
            preferred.setdefault((better.key, worse.key), better)
    for key, examples in (("equal_pairs", equal), ("reversed_pairs", reversed_)):
        if examples:
            yield Measurement(key, {"pairs": len(examples)}, examples)


def cite_both(a: Completion, b: Completion, cited: Completion) -> str:
    """Where two completions stand, and the beginning of one of them."""
    return f"{at(a)} and {at(b)}: {cite(cited.readable)}"


def partners(thumbs: Sequence[Thumb]) -> Iterator[Measurement]:
    """Whether each row finds an answer to another prompt as its partner for z0."""
    if len(thumbs) < 2:
        return
    (top, rows), *others = Counter(t.prompt for t in thumbs).most_common()
    where = [at(next(t.completion for t in thumbs if t.prompt == top))]
    if not others:
        yield Measurement("one_prompt", examples=where)
    elif 2 * rows > len(thumbs):
        data = {"rows": rows, "without_partner": 2 * rows - len(thumbs)}
        yield Measurement("dominant_prompt", data, where, {"share": of(rows, len(thumbs))})


def length_confound(thumbs: Sequence[Thumb], unit: str) -> Iterator[Measurement]:
    """P(a desirable answer is longer than an undesirable one), with its 95 % interval clustered by prompt."""
    good = np.array([t.desirable for t in thumbs], bool)
    if not good.any() or good.all():
        return
    lengths = np.array([t.length for t in thumbs], np.float64)
    auc = clustered_auc(lengths, good, np.array([t.prompt for t in thumbs]))
    medians = {"desirable": float(np.median(lengths[good])), "undesirable": float(np.median(lengths[~good]))}
    data = {"auc": auc.value, "low": auc.low, "high": auc.high, "unit": unit, "median": medians}
    yield Measurement("length_confound", data, words={"kind": "longer" if auc.value > 0.5 else "shorter"})


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


OPENING = 5
"""Words of an opening."""
FRACTION = 0.1
"""The share that the split by row, to which groups are compared, would hold out."""


def duplicates(records: Sequence[Record], prompts: Sequence[int]) -> Iterator[Measurement]:
    """The same answer to the same prompt, judged alike, more than once; and answers to one prompt that nearly agree.
    `prompts` are the records' `prompt_numbers`."""
    answers: dict[int, list[Completion]] = defaultdict(list)
    for record, prompt in zip(records, prompts, strict=True):
        answers[prompt] += record.completions
    same: list[str] = []
    near: list[str] = []
    opposite = 0
    for group in answers.values():
        earliest: dict[tuple[str, bool | None, float | None], Completion] = {}
        texts: dict[str, Completion] = {}
        for completion in group:
            key = (completion.key, completion.label, completion.score)
            if key in earliest and completion.readable:
                same.append(cite_both(earliest[key], completion, completion))
            earliest.setdefault(key, completion)
            # Two calls that differ in one argument differ: only words can nearly repeat.
            if isinstance(completion.content, str) or not completion.content.get("tool_calls"):
                texts.setdefault(completion.text, completion)
        distinct = [c for t, c in texts.items() if t.strip()]
        for later, earlier in near_twins([c.text for c in distinct]).items():
            a, b = distinct[earlier], distinct[later]
            opposite += a.label is not None and b.label is not None and a.label != b.label
            near.append(f"{at(a)} and {at(b)}: {cite(b.text)}")
    total = sum(map(len, answers.values()))
    if same:
        yield Measurement("duplicates", {"rows": len(same)}, same, {"share": of(len(same), total)})
    if near:
        data = {"rows": len(near), "opposite": opposite}
        yield Measurement("near_duplicates", data, near, {"share": of(len(near), total)})
    if not same and not near:
        yield Measurement("duplicates")


def phrases(thumbs: Sequence[Thumb]) -> Iterator[Measurement]:
    """Answers, or openings of answers, that come back across prompts; worst where they give the label away."""
    total = len({t.prompt for t in thumbs})
    whole: dict[str, list[Thumb]] = defaultdict(list)
    openings: dict[str, list[Thumb]] = defaultdict(list)
    for thumb in thumbs:
        answer = words(thumb.completion.text)
        if answer:
            whole[" ".join(answer)].append(thumb)
        if len(answer) > OPENING:
            openings[" ".join(answer[:OPENING])].append(thumb)
    base = sum(t.desirable for t in thumbs) / max(1, len(thumbs))
    for key, groups, least in (("templated", whole, 0.01), ("openings", openings, 0.05)):
        common = [g for g in groups.values() if len({t.prompt for t in g}) >= max(5, least * total)]
        if not common:
            continue
        common.sort(key=len, reverse=True)
        rates = [sum(t.desirable for t in g) / len(g) for g in common]
        telling = [len(g) for g, rate in zip(common, rates, strict=True) if len(g) >= 10 and abs(rate - base) > 0.3]
        examples = [
            f"{len(g)} times, {100 * rate:.0f} % desirable: {cite(g[0].completion.text)}"
            for g, rate in zip(common, rates, strict=True)
        ]
        rows = sum(map(len, common))
        data = {"texts": len(common), "rows": rows, "telling_rows": sum(telling)}
        share = of(rows, len(thumbs))
        yield Measurement(
            key, data, examples, {"share": share, "telling": len(telling), "base": 100 * base, "words": OPENING}
        )


def near_prompts(records: Sequence[Record], groups: Groups) -> Iterator[Measurement]:
    """Prompts of different conversations that nearly agree."""
    heads: dict[int, int] = {}  # of each group the first record
    twins: dict[int, tuple[int, int]] = {}  # of each conversation that joins a group, its head and its first record
    for i, (conversation, group) in enumerate(zip(groups.conversation, groups.group, strict=True)):
        head = heads.setdefault(group, i)
        if conversation != groups.conversation[head]:
            twins.setdefault(conversation, (head, i))
    if twins:
        examples = _cite_pairs((records[a], records[b]) for a, b in twins.values())
        share = of(len(twins), len(set(groups.conversation)))
        yield Measurement("near_prompts", {"prompts": len(twins)}, examples, {"share": share})


def split_by_row(records: Sequence[Record], groups: Groups) -> Iterator[Measurement]:
    """What a split by row would leak, where the groups are more than prompts with several answers."""
    prompts, count = len(set(groups.prompt)), len(set(groups.group))
    if count == prompts:
        return
    rows = Counter[int]()
    for record, group in zip(records, groups.group, strict=True):
        rows[group] += len(record.completions)
    total = sum(rows.values())
    apart = max(1, round(FRACTION * total))
    leaked = round(sum(size * _leak_probability(size, total, apart) for size in rows.values()) * apart / total)
    data = {"prompts": prompts, "groups": count, "largest": max(rows.values()), "heldout": apart, "leaked": leaked}
    yield Measurement("groups", data, words={"percent": 100 * FRACTION, "share": of(leaked, apart)})


def _leak_probability(size: int, total: int, apart: int) -> float:
    """P(some row of a group of `size` is trained on | one of it is among the `apart` of `total` rows held out)."""
    if size > apart:
        return 1.0
    # All others are held out, too: C(total - size, apart - size) / C(total - 1, apart - 1).
    rest = total - apart
    ways = lgamma(total - size + 1) - lgamma(apart - size + 1) - lgamma(rest + 1)
    return 1 - exp(ways - lgamma(total) + lgamma(apart) + lgamma(rest + 1))


def held_out(records: Sequence[Record], heldout: Sequence[Record], groups: Groups) -> Iterator[Measurement]:
    """Held-out prompts that were trained on: as they are, as part of a conversation, or nearly. `groups` are those of
    both files, `records` first."""
    rest = [i for i, record in enumerate(heldout, len(records)) if _has_text(record)]
    total = len(rest)
    levels = {
        "shared_prompts": groups.prompt,
        "shared_conversations": groups.conversation,
        "near_shared_prompts": groups.group,
    }
    clean = True
    for key, numbers in levels.items():
        trained: dict[int, int] = {}
        for i in range(len(records)):
            trained.setdefault(numbers[i], i)
        shared = [i for i in rest if numbers[i] in trained]
        rest = [i for i in rest if numbers[i] not in trained]
        if shared:
            clean = False
            pairs = ((records[trained[numbers[i]]], heldout[i - len(records)]) for i in shared)
            data = {"prompts": len(shared)}
            yield Measurement(key, data, _cite_pairs(pairs, "held-out "), {"share": of(len(shared), total)})
    if clean:
        yield Measurement("shared_prompts")


def _cite_pairs(pairs: Iterable[tuple[Record, Record]], second: str = "") -> list[str]:
    return [
        f"{_place(a)} and {second}{_place(b)}: {cite_end(readable(b.prompt))}"
        for _, (a, b) in zip(range(EXAMPLES), pairs, strict=False)
    ]


def _place(record: Record) -> str:
    return at(record.completions[0]) if record.completions else record.id


def _has_text(record: Record) -> bool:
    """Whether the prompt has any word."""
    turns = (record.prompt,) if isinstance(record.prompt, str) else record.prompt
    return any(readable(turn).strip() for turn in turns)
