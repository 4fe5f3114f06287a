"""The doctor on splits: what a split by row would leak, and what a held-out file gives away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from math import exp, lgamma

from prospect.data.groups import Groups
from prospect.doctor.findings import Finding, first, of
from prospect.feedback.records import EXAMPLES, Record, at, cite_end, readable

FRACTION = 0.1
"""The share that the split by row, to which groups are compared, would hold out."""


def leaks(records: Sequence[Record], together: Groups) -> Iterator[Finding]:
    """What a split by row would leak, where the groups are more than prompts with several answers."""
    prompts, groups = len(set(together.prompt)), len(set(together.group))
    if groups == prompts:
        return
    rows = Counter[int]()
    for record, group in zip(records, together.group, strict=True):
        rows[group] += len(record.completions)
    total = sum(rows.values())
    apart = max(1, round(FRACTION * total))
    leaked = round(sum(size * _leaks(size, total, apart) for size in rows.values()) * apart / total)
    message = (
        f"{prompts} prompts are {groups} groups: turns of one conversation and near repeats belong together. A split "
        f"by row that holds out {100 * FRACTION:.0f} % would have trained on the group of about {of(leaked, apart)} "
        "held-out rows. --eval-fraction holds out whole groups; so must a split of your own"
    )
    data = {"prompts": prompts, "groups": groups, "largest": max(rows.values()), "heldout": apart, "leaked": leaked}
    yield Finding("groups", "info", message, data=data)


def _leaks(size: int, total: int, apart: int) -> float:
    """P(some row of a group of `size` is trained on | one of it is among the `apart` of `total` rows held out)."""
    if size > apart:
        return 1.0
    # All others are held out, too: C(total - size, apart - size) / C(total - 1, apart - 1).
    rest = total - apart
    ways = lgamma(total - size + 1) - lgamma(apart - size + 1) - lgamma(rest + 1)
    return 1 - exp(ways - lgamma(total) + lgamma(apart) + lgamma(rest + 1))


def near_prompts(records: Sequence[Record], together: Groups) -> Iterator[Finding]:
    """Prompts of different conversations that nearly agree."""
    heads: dict[int, int] = {}  # of each group the first record
    twins: dict[int, tuple[int, int]] = {}  # of each conversation that joins a group, its first record and the head
    for i, (conversation, group) in enumerate(zip(together.conversation, together.group, strict=True)):
        head = heads.setdefault(group, i)
        if conversation != together.conversation[head]:
            twins.setdefault(conversation, (head, i))
    if twins:
        message = (
            f"{of(len(twins), len(set(together.conversation)))} prompts nearly repeat another one. --eval-fraction "
            "keeps such prompts on one side; so must a split of your own"
        )
        pairs = [(records[a], records[b]) for a, b in twins.values()]
        yield Finding("near_prompts", "info", message, _cited(pairs), {"prompts": len(twins)})


def held_out(records: Sequence[Record], heldout: Sequence[Record], together: Groups) -> Iterator[Finding]:
    """Held-out prompts that were trained on: as they are, as part of a conversation, or nearly. `together` are the
    groups of both files, `records` first."""
    rest = [i for i, record in enumerate((*records, *heldout)) if i >= len(records) and _has_text(record)]
    total, leaked = len(rest), 0
    for key, numbers, what in (
        ("shared_prompts", together.prompt, "are also trained on"),
        (
            "shared_conversations",
            together.conversation,
            "are of a conversation that is trained on (one begins the "
            "other, an answer stands in the other's prompt, or both have its id)",
        ),
        ("near_shared_prompts", together.group, "nearly repeat a prompt that is trained on"),
    ):
        trained: dict[int, int] = {}
        for i in range(len(records)):
            trained.setdefault(numbers[i], i)
        shared = [i for i in rest if numbers[i] in trained]
        rest = [i for i in rest if numbers[i] not in trained]
        leaked += len(shared)
        if shared:
            message = (
                f"{of(len(shared), total)} held-out prompts {what}, so the evaluation flatters the model. Remove them "
                "from one file, or split with --eval-fraction, which keeps such prompts on one side"
            )
            pairs = [(records[trained[numbers[i]]], heldout[i - len(records)]) for i in shared]
            yield Finding(key, "warning", message, _cited(pairs, "held-out "), {"prompts": len(shared)})
    if not leaked:
        yield Finding("shared_prompts", "ok", "no held-out prompt, conversation or near repeat of one is trained on")


def _has_text(record: Record) -> bool:
    turns = (record.prompt,) if isinstance(record.prompt, str) else record.prompt
    return any(readable(turn).strip() for turn in turns)


def _cited(pairs: Sequence[tuple[Record, Record]], second: str = "") -> tuple[str, ...]:
    return first([f"{_place(a)} and {second}{_place(b)}: {cite_end(readable(b.prompt))}" for a, b in pairs[:EXAMPLES]])


def _place(record: Record) -> str:
    return at(record.completions[0]) if record.completions else record.id
