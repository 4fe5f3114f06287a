"""The doctor on what comes again: answers, phrases, prompts, and what a split by row or a held-out file gives away."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from math import exp, lgamma

from prospect.data.near_duplicates import near_twins, words
from prospect.data.split import Groups
from prospect.doctor.findings import Measurement, of
from prospect.doctor.labels import Thumb, cite_both
from prospect.feedback.records import EXAMPLES, Completion, Record, at, cite, cite_end, readable

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
