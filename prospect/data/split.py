"""Which records are held out: whole groups, so that nothing held out was seen in training under another name."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from prospect.data.groups import Groups, groups
from prospect.errors import DataError
from prospect.feedback.prompts import prompt_digests
from prospect.feedback.records import Record

CLASSES = (True, False, None)
"""Thumb up, thumb down, no thumb."""


def split(records: Sequence[Record], fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """(training, held-out) records, in the order of `records`: about `fraction` of the completions of each class held
    out, at least one group on either side, none on both.

    Which groups are held out depends on their texts, `fraction` and `seed`, not on the order of the records. Raises
    DataError where there is one group only, or where the groups are too large for anything near the fraction.
    """
    grouped = groups(records)
    counts = [[0, 0, 0] for _ in range(max(grouped.group, default=-1) + 1)]
    digests: list[bytes] = [b""] * len(counts)
    for record, group, digest in zip(records, grouped.group, prompt_digests(records), strict=True):
        for completion in record.completions:
            counts[group][CLASSES.index(completion.label)] += 1
        digests[group] = min(digests[group], digest) if digests[group] else digest
    if len(counts) < 2:
        raise DataError(f"--eval-fraction holds out whole groups, but there is only one{_why(records, grouped)}")
    order = sorted(range(len(counts)), key=lambda g: hashlib.sha256(f"split {seed} ".encode() + digests[g]).digest())
    held = _choose(counts, order, fraction)
    rows, apart = sum(map(sum, counts)), sum(sum(counts[g]) for g in held)
    if not fraction / 2 <= apart / rows <= max(2 * fraction, 0.5) and apart != 1:
        raise DataError(
            f"--eval-fraction {fraction:g} comes to {100 * apart / rows:.2g} % of the rows, since it holds out whole "
            f"groups and the largest has {100 * max(map(sum, counts)) / rows:.3g} %{_why(records, grouped)}"
        )
    train = [record for record, group in zip(records, grouped.group, strict=True) if group not in held]
    return train, [record for record, group in zip(records, grouped.group, strict=True) if group in held]


def _choose(counts: Sequence[Sequence[int]], order: Sequence[int], fraction: float) -> set[int]:
    """Groups whose classes sum up to `fraction` of each class, as near as they come when they are taken in `order`."""
    targets = []
    for side in range(len(CLASSES)):
        total, having = sum(count[side] for count in counts), sum(count[side] > 0 for count in counts)
        # One of each class on either side, where the class is in several groups.
        targets.append(min(max(fraction * total, 1), total - 1) if having > 1 else fraction * total)

    def distance(sums: Sequence[float]) -> float:
        return sum(abs(a - b) for a, b in zip(sums, targets, strict=True))

    sums: list[float] = [0.0] * len(CLASSES)
    held: set[int] = set()
    for group in order:
        after = [a + b for a, b in zip(sums, counts[group], strict=True)]
        if distance(after) < distance(sums) and len(held) < len(order) - 1:
            sums = after
            held.add(group)
    return held or {min(order, key=lambda group: distance(counts[group]))}


def _why(records: Sequence[Record], grouped: Groups) -> str:
    """What makes the largest group one, and what to do about it."""
    group, _ = Counter(grouped.group).most_common(1)[0]
    members = [i for i, g in enumerate(grouped.group) if g == group]
    names = Counter(name for i in members for name in records[i].conversations)
    talks = len({grouped.conversation[i] for i in members})
    if len(members) == 1:
        why = "one prompt has them all"
    elif names and (most := names.most_common(1)[0])[1] > len(members) / 2:
        why = (
            f'{most[1]} of its {len(members)} prompts have the conversation id "{most[0]}": if that is none, remove '
            "the column"
        )
    elif talks < len(members) / 2:
        why = f"its {len(members)} prompts are turns of {talks} conversations, each of which begins another"
    else:
        why = f"its {len(members)} prompts nearly repeat each other"
    return f" ({why}). Collect feedback on other prompts, or name held-out feedback with --eval-data"
