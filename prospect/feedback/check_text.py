"""The doctor on texts: duplicates, near duplicates, prompts on both sides of a split, empty and templated answers."""

from __future__ import annotations

import json
import re
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from prospect.feedback.check_labels import Thumb
from prospect.feedback.findings import Finding, at, both, cite, first, of
from prospect.feedback.records import Completion, Record, message_text

NEAR = 0.8
"""Texts are near duplicates where this share of their three-word sequences is common to both (Jaccard)."""
HASHES, BANDS = 32, 8
"""MinHash: at 8 bands of 4 rows, texts with Jaccard .8 are found with probability .985."""
SMALL = 16
"""So few texts are compared each with each."""
_WORD = re.compile(r"\w+|[+*/=<>^%&@#$€£×÷−]|-(?=\s*\d)")
OPENING = 5
"""Words of an opening."""


def prompt_key(record: Record) -> str:
    """Equal for equal prompts with equal tools and template switches."""
    return json.dumps([record.prompt, record.tools, record.template_kwargs], sort_keys=True, ensure_ascii=False)


def prompt_text(record: Record) -> str:
    """All the text of a prompt."""
    if isinstance(record.prompt, str):
        return record.prompt
    return "\n".join(map(message_text, record.prompt))


def words(text: str) -> list[str]:
    """Words and signs of arithmetic, without case, punctuation, typographic variants; of a text without any, the text.

    The signs stay since "12 + 7" and "12 - 7" are different questions.
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    return _WORD.findall(plain) or plain.split()


def duplicates(records: Sequence[Record]) -> Iterator[Finding]:
    """The same answer to the same prompt, judged alike, more than once; and answers to one prompt that nearly agree."""
    groups: dict[str, list[Completion]] = defaultdict(list)
    for record in records:
        groups[prompt_key(record)] += record.completions
    same: list[str] = []
    near: list[str] = []
    opposite = 0
    for group in groups.values():
        seen: dict[tuple[str, bool | None, float | None], Completion] = {}
        texts: dict[str, Completion] = {}
        for completion in group:
            key = (completion.key, completion.label, completion.score)
            if key in seen and completion.readable:
                same.append(f"{both(seen[key], completion)}: {cite(completion.readable)}")
            seen.setdefault(key, completion)
            # Two calls that differ in one argument differ: only what is said in words can nearly repeat.
            if isinstance(completion.content, str) or not completion.content.get("tool_calls"):
                texts.setdefault(completion.text, completion)
        distinct = [c for t, c in texts.items() if t.strip()]
        for later, earlier in near_twins([c.text for c in distinct]).items():
            a, b = distinct[earlier], distinct[later]
            opposite += a.label is not None and b.label is not None and a.label != b.label
            near.append(f"{both(a, b)}: {cite(b.text)}")
    total = sum(map(len, groups.values()))
    if same:
        message = (
            f"{of(len(same), total)} rows repeat an answer to the same prompt with the same label. Remove them, or "
            "they count twice"
        )
        yield Finding("duplicates", "warning", message, first(same), {"rows": len(same)})
    if near:
        message = (
            f"{of(len(near), total)} answers nearly repeat another answer to the same prompt"
            + (f", {opposite} of them with the opposite label" if opposite else "")
            + ". Look at some: if only typing differs, keep one"
        )
        yield Finding("near_duplicates", "info", message, first(near), {"rows": len(near), "opposite": opposite})
    if not same and not near:
        yield Finding("duplicates", "ok", "no answer to a prompt is repeated")


def prompts(records: Sequence[Record]) -> Iterator[Finding]:
    """Different prompts that nearly agree: a split by prompt would put one on either side."""
    by_key = {prompt_key(r): r for r in records}
    distinct = [r for r in by_key.values() if prompt_text(r).strip()]
    twins = near_twins([prompt_text(r) for r in distinct])
    if twins:
        examples = [f"{_place(distinct[i])} and {_place(distinct[j])}: {_tail(distinct[j])}" for j, i in twins.items()]
        message = (
            f"{of(len(twins), len(distinct))} prompts nearly repeat another one. A split by prompt may put one on "
            "either side; keep such prompts on one side"
        )
        yield Finding("near_prompts", "info", message, first(examples), {"prompts": len(twins)})


def shared_prompts(records: Sequence[Record], heldout: Sequence[Record]) -> Iterator[Finding]:
    """Prompts that stand in the training file and in the held-out file."""
    training = {prompt_key(r): r for r in records if prompt_text(r).strip()}
    held = {prompt_key(r): r for r in heldout if prompt_text(r).strip()}
    shared = [key for key in held if key in training]
    if shared:
        examples = [f"{_place(training[k])} and held-out {_place(held[k])}: {_tail(held[k])}" for k in shared]
        message = (
            f"{of(len(shared), len(held))} held-out prompts are also trained on, so the evaluation flatters the model. "
            "Remove them from one file, or split with --eval-fraction, which goes by prompt"
        )
        yield Finding("shared_prompts", "warning", message, first(examples), {"prompts": len(shared)})
    rest = [r for key, r in held.items() if key not in training]
    known = list(training.values())
    twins = near_twins([prompt_text(r) for r in (*known, *rest)], after=len(known))
    if twins:
        pairs = [(known[i], rest[j - len(known)]) for j, i in twins.items()]
        examples = [f"{_place(a)} and held-out {_place(b)}: {_tail(b)}" for a, b in pairs]
        message = (
            f"{of(len(twins), len(held))} held-out prompts nearly repeat a training prompt. Look at some, and remove "
            "what leaks"
        )
        yield Finding("near_shared_prompts", "warning", message, first(examples), {"prompts": len(twins)})
    if not shared and not twins:
        yield Finding("shared_prompts", "ok", "no held-out prompt is trained on")


def empty(records: Sequence[Record]) -> Iterator[Finding]:
    """Answers without content, and those that were cut off."""
    every = [c for r in records for c in r.completions]
    blank = [c for c in every if _blank(c)]
    if blank:
        message = (
            f"{of(len(blank), len(every))} completions are empty. Remove them, unless silence is an answer you judge"
        )
        yield Finding("empty", "warning", message, first([at(c) for c in blank]), {"completions": len(blank)})
    cut = [c for c in every if not c.complete]
    if cut:
        message = (
            f"{of(len(cut), len(every))} completions were cut off by the generator: they train without an end of turn"
        )
        yield Finding("incomplete", "info", message, first([at(c) for c in cut]), {"completions": len(cut)})


def untemplated(records: Sequence[Record]) -> Iterator[Finding]:
    """Prompts of text where the model has a chat template: its turns would be missing from what is trained."""
    plain = [record for record in records if isinstance(record.prompt, str) and record.prompt]
    if plain:
        first_one = plain[0]
        trained = f"{prompt_text(first_one)}{first_one.completions[0].readable if first_one.completions else ''}"
        message = (
            f"{of(len(plain), len(records))} prompts are plain text, but the model has a chat template: they train as "
            "they stand, and chat will never look like that. Write them as messages (prospect convert IN OUT.jsonl "
            "--chat), unless the model is to go on with a text"
        )
        yield Finding("text_for_chat", "warning", message, (f"trained: {_tail_of(trained)}",), {"prompts": len(plain)})


def templated(thumbs: Sequence[Thumb]) -> Iterator[Finding]:
    """Answers, or openings of answers, that come back across prompts; worst where they give the label away."""
    total = len({t.prompt for t in thumbs})
    whole: dict[str, list[Thumb]] = defaultdict(list)
    openings: dict[str, list[Thumb]] = defaultdict(list)
    for thumb in thumbs:
        said = words(thumb.completion.text)
        if said:
            whole[" ".join(said)].append(thumb)
        if len(said) > OPENING:
            openings[" ".join(said[:OPENING])].append(thumb)
    base = sum(t.desirable for t in thumbs) / max(1, len(thumbs))
    for key, groups, least in (("templated", whole, 0.01), ("openings", openings, 0.05)):
        common = [g for g in groups.values() if len({t.prompt for t in g}) >= max(5, least * total)]
        if not common:
            continue
        common.sort(key=len, reverse=True)
        rates = [sum(t.desirable for t in g) / len(g) for g in common]
        telling = [len(g) for g, rate in zip(common, rates, strict=True) if len(g) >= 10 and abs(rate - base) > 0.3]
        examples = [
            f"{len(g)} times, {100 * p:.0f} % desirable: {_said(g)}" for g, p in zip(common, rates, strict=True)
        ]
        what = "answers" if key == "templated" else f"openings (first {OPENING} words)"
        message = (
            f"{what} that come back across prompts: {len(common)}, in {of(sum(map(len, common)), len(thumbs))} rows"
        )
        if telling:
            message += (
                f". {len(telling)} of them tell the label ({100 * base:.0f} % of all rows are desirable), so the model "
                "can learn the phrase instead of what it stands for. Vary or thin them out"
            )
        data = {"texts": len(common), "rows": sum(map(len, common)), "telling_rows": sum(telling)}
        yield Finding(key, "warning" if telling else "info", message, first(examples), data)


def near_twins(texts: Sequence[str], after: int | None = None) -> dict[int, int]:
    """{index: an earlier index of a near duplicate}; with `after`, texts from there on are compared with those before.

    Near: equal up to case and punctuation, or Jaccard >= NEAR on three-word sequences. Candidates come from banded
    MinHash (Broder 1997), each text with the first of its buckets, and are compared exactly: time linear in the texts.
    """
    if len(texts) < 2:
        return {}
    shingles = [_shingles(words(text)) for text in texts]
    # In a small group everything is compared: one bucket per text would be of no use there.
    keys = _bands(shingles) if len(texts) > SMALL else None
    buckets: dict[bytes, int] = {}
    found: dict[int, int] = {}
    for i, mine in enumerate(shingles):
        if keys is None:
            earlier: Iterable[int] = range(i if after is None else after if i >= after else 0)
        else:
            earlier = _meet(buckets, keys[i], i, after)
        match = next((j for j in earlier if _jaccard(mine, shingles[j]) >= NEAR), None)
        if match is not None:
            found[i] = match
    return found


def _meet(buckets: dict[bytes, int], keys: Sequence[bytes], i: int, after: int | None) -> list[int]:
    """The first texts of the buckets of text i, which joins those without one unless it comes from `after` on."""
    known = [buckets.get(key) for key in keys] if after is None or i >= after else []
    if after is None or i < after:
        for key in keys:
            buckets.setdefault(key, i)
    return sorted({j for j in known if j is not None})


def _shingles(said: Sequence[str]) -> npt.NDArray[np.uint32]:
    """Sorted hashes of all three-word sequences. A shorter text is one sequence."""
    grams = (" ".join(said[i : i + 3]) for i in range(max(1, len(said) - 2)))
    # Not hash(): it differs between processes.
    return np.array(sorted({zlib.crc32(gram.encode()) for gram in grams}), np.uint32)


def _bands(shingles: Sequence[npt.NDArray[np.uint32]]) -> list[list[bytes]]:
    """Per text BANDS bucket keys from its MinHash signature."""
    flat = np.concatenate(shingles).astype(np.uint64)
    starts = np.cumsum([0, *(len(s) for s in shingles[:-1])])
    factors, terms = np.random.default_rng(0).integers(1, 2**63, (2, HASHES), np.uint64) * np.uint64(2) + np.uint64(1)
    signature = np.empty((len(shingles), HASHES), np.uint32)
    for k in range(HASHES):
        # Multiply-shift hashing: wraps at 2^64, the upper half is well mixed.
        mixed = ((flat * factors[k] + terms[k]) >> np.uint64(32)).astype(np.uint32)
        signature[:, k] = np.minimum.reduceat(mixed, starts)
    rows = HASHES // BANDS
    return [[bytes([b]) + s[b * rows : (b + 1) * rows].tobytes() for b in range(BANDS)] for s in signature]


def _jaccard(a: npt.NDArray[np.uint32], b: npt.NDArray[np.uint32]) -> float:
    if min(len(a), len(b)) < NEAR * max(len(a), len(b)):
        return 0.0  # cannot reach NEAR
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


def _blank(completion: Completion) -> bool:
    content = completion.content
    if isinstance(content, str):
        return not content.strip()
    rest = any(value for key, value in content.items() if key not in ("role", "content"))
    return not rest and not (
        completion.text.strip() if isinstance(content.get("content"), str) else content.get("content")
    )


def _place(record: Record) -> str:
    return at(record.completions[0]) if record.completions else record.id


def _tail(record: Record) -> str:
    """The end of a prompt: conversations often begin alike."""
    return _tail_of(prompt_text(record))


def _tail_of(text: str) -> str:
    text = " ".join(text.split())
    return cite(text if len(text) <= 60 else f"…{text[-58:]}")


def _said(group: Sequence[Thumb]) -> str:
    return cite(group[0].completion.text)
