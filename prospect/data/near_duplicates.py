"""Near duplicates: texts that say the same but for typing and a few words. One definition for answers and prompts.

    text -> words -> shingles (hashes of its three-word sequences) -> MinHash signature -> candidates -> Jaccard >= NEAR

Candidates come from banded MinHash (Broder 1997) and are compared exactly; the number of comparisons is linear in the
number of texts.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

NEAR = 0.8
"""Texts are near duplicates where this share of their three-word sequences is common to both (Jaccard)."""
HASHES, BANDS = 64, 16
"""MinHash: at 16 bands of 4 hashes, texts with Jaccard .8 become candidates with probability .9998."""
PROMISING = 0.6
"""Candidates with fewer equal hashes are not compared: at Jaccard .8 that is four standard deviations below."""
NEIGHBOURS = 3
"""How many texts before it in its bucket a text is compared with, beside the bucket's first."""
MISSES = 8
"""After so many comparisons in vain, a text is no longer compared with another that has had as many."""
SMALL = 16
"""So few texts are compared each with each."""
_BLOCK = 1 << 16
"""Shingles hashed at a time: what fits into a core's cache."""
_SPACELESS = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e80-\u0ece"  # Thai, Lao
    "\u1000-\u103f\u1050-\u108f\u1780-\u17d3"  # Burmese, Khmer
    "\u3005-\u3007\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"  # Kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Han
)
"""Characters of scripts that put no space between words."""
_WORD = re.compile(rf"[^\W{_SPACELESS}]+|[{_SPACELESS}]|[+*/=<>^%&@#$€£×÷−]|-(?=\s*\d)")

Shingles = npt.NDArray[np.uint32]
Signatures = npt.NDArray[np.uint32]
EMPTY: Shingles = np.empty(0, np.uint32)


class Components:
    """Union-find over the items 0 to n - 1 (Tarjan 1975, with path halving and union by size)."""

    def __init__(self, count: int) -> None:
        self._above = list(range(count))
        self._size = [1] * count

    def root(self, item: int) -> int:
        """The item that stands for the component of `item`."""
        above = self._above
        while above[item] != item:
            above[item] = item = above[above[item]]
        return item

    def join(self, a: int, b: int) -> None:
        """Make one component of those of `a` and `b`."""
        a, b = self.root(a), self.root(b)
        if a == b:
            return
        if self._size[a] < self._size[b]:
            a, b = b, a
        self._above[b] = a
        self._size[a] += self._size[b]

    def joined(self, a: int, b: int) -> bool:
        return self.root(a) == self.root(b)

    def numbers(self, items: Iterable[int]) -> tuple[int, ...]:
        """The component of each of `items`, numbered from 0 in the order of first appearance."""
        numbers: dict[int, int] = {}
        return tuple(numbers.setdefault(self.root(item), len(numbers)) for item in items)


def words(text: str) -> list[str]:
    """Words and signs of arithmetic, without case, punctuation, typographic variants; of a text without any, the text.
    In scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) a word is one character.

    The signs and digits stay since "12 + 7" and "12 - 7" are different questions.
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    return _WORD.findall(plain) or plain.split()


@cache
def _factors() -> npt.NDArray[np.uint64]:
    """(2, HASHES) odd numbers for multiply-shift hashing."""
    return np.random.default_rng(0).integers(1, 2**63, (2, HASHES), np.uint64) * np.uint64(2) + np.uint64(1)


class Shingler:
    """Texts to shingles; every distinct word is hashed once."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}

    def __call__(self, sequence: Sequence[str]) -> Shingles:
        """Sorted distinct hashes of all three-word sequences. A shorter text is one sequence, an empty one has none."""
        if not sequence:
            return EMPTY
        codes = self._codes
        for word in sequence:
            if word not in codes:  # not hash(): it differs between processes
                codes[word] = zlib.crc32(word.encode("utf-8", "surrogatepass")) + 1
        code = np.array([codes[word] for word in sequence] + [0] * (3 - len(sequence)), np.uint64)
        factors = _factors()[0, :3]
        mixed = code[:-2] * factors[0] + code[1:-1] * factors[1] + code[2:] * factors[2]  # wraps at 2^64
        return np.unique((mixed >> np.uint64(32)).astype(np.uint32))


def signatures(sets: Sequence[Shingles]) -> Signatures:
    """(N, HASHES): the least value of each hash function over each set; an empty set has the largest value."""
    least = np.full((len(sets), HASHES), np.iinfo(np.uint32).max, np.uint32)
    filled = [i for i, shingles in enumerate(sets) if len(shingles)]
    factors, terms = _factors()
    start = 0
    while start < len(filled):
        end, size = start, 0
        while end < len(filled) and (end == start or size + len(sets[filled[end]]) <= _BLOCK):
            size += len(sets[filled[end]])
            end += 1
        block = filled[start:end]
        flat = np.concatenate([sets[i] for i in block]).astype(np.uint64)
        places = np.cumsum([0, *(len(sets[i]) for i in block[:-1])])
        for k in range(HASHES):
            # Multiply-shift hashing: wraps at 2^64, the upper half is well mixed.
            mixed = ((flat * factors[k] + terms[k]) >> np.uint64(32)).astype(np.uint32)
            least[block, k] = np.minimum.reduceat(mixed, places)
        start = end
    return least


def jaccard(a: Shingles, b: Shingles) -> float:
    """The share of shingles common to both; 0 where their numbers alone keep it below NEAR."""
    if min(len(a), len(b)) < NEAR * max(len(a), len(b)) or not len(a):
        return 0.0
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


def join_near(
    components: Components, items: Sequence[int], signature: Signatures, shingles_of: Callable[[int], Shingles]
) -> None:
    """Join the items (of `components`) that are near duplicates. `signature` is aligned with `items`, `shingles_of`
    takes an item. What is joined already is not compared."""
    if len(items) <= SMALL:
        for a, b in combinations(items, 2):
            if not components.joined(a, b) and jaccard(shingles_of(a), shingles_of(b)) >= NEAR:
                components.join(a, b)
        return
    roots = np.array([components.root(item) for item in items])
    misses = [0] * len(items)
    for i, j in _candidates(signature, roots):
        a, b = items[i], items[j]
        if components.joined(a, b) or (misses[i] >= MISSES and misses[j] >= MISSES):
            continue
        if jaccard(shingles_of(a), shingles_of(b)) >= NEAR:
            components.join(a, b)
        else:
            misses[i] += 1
            misses[j] += 1


def _candidates(signature: Signatures, roots: npt.NDArray[Any]) -> list[tuple[int, int]]:
    """Index pairs of signatures that share a bucket, the most alike first; none of equal `roots`."""
    count, width = len(signature), HASHES // BANDS
    factor = _factors()[0, 0]
    pairs: list[npt.NDArray[np.int64]] = []
    for band in range(BANDS):
        key = np.zeros(count, np.uint64)
        for column in range(band * width, (band + 1) * width):
            key = (key ^ signature[:, column]) * factor  # wraps at 2^64
            key ^= key >> np.uint64(29)
        order = np.argsort(key, kind="stable")
        key = key[order]
        begins = np.concatenate(([True], key[1:] != key[:-1]))
        bucket_first = np.maximum.accumulate(np.where(begins, np.arange(count), 0))
        for distance in range(1, NEIGHBOURS + 1):
            same = np.flatnonzero(key[distance:] == key[:-distance])
            pairs.append(np.stack([order[same], order[same + distance]], axis=1))
        far = np.flatnonzero(np.arange(count) - bucket_first > NEIGHBOURS)
        pairs.append(np.stack([order[bucket_first[far]], order[far]], axis=1))
    pair = np.concatenate(pairs)
    pair = pair[roots[pair[:, 0]] != roots[pair[:, 1]]]
    packed = np.unique(pair.min(axis=1) * count + pair.max(axis=1))
    first, second = packed // count, packed % count
    alike = np.empty(len(packed))
    for start in range(0, len(packed), _BLOCK):
        part = slice(start, start + _BLOCK)
        alike[part] = np.mean(signature[first[part]] == signature[second[part]], axis=1)
    order = np.argsort(-alike, kind="stable")
    order = order[alike[order] >= PROMISING]
    return list(zip(first[order].tolist(), second[order].tolist(), strict=True))


def near_twins(texts: Sequence[str]) -> dict[int, int]:
    """{index: the first index of a text that it nearly repeats, directly or by way of others}. Blank texts repeat
    nothing."""
    if len(texts) < 2:
        return {}
    shingle = Shingler()
    sets = [shingle(words(text)) for text in texts]
    items = [i for i, shingles in enumerate(sets) if len(shingles)]
    components = Components(len(texts))
    signature = signatures([sets[i] for i in items]) if len(items) > SMALL else np.empty((0, HASHES), np.uint32)
    join_near(components, items, signature, sets.__getitem__)
    first: dict[int, int] = {}
    earliest = {i: first.setdefault(components.root(i), i) for i in items}
    return {i: twin for i, twin in earliest.items() if twin != i}
