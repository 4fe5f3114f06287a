"""Which records are held out: whole groups, so that nothing held out was seen in training under another name.

Two records are of one group, directly or by way of others, where

- they have the same prompt (or, without a prompt, the same text),
- they come from one conversation: a conversation's id says so, one prompt is the beginning of another, or the answer
  of one stands verbatim in the prompt of the other,
- their prompts are near duplicates, the system's messages apart.

The groups depend on the records alone, not on their order; the time is linear in the text.

Near duplicates are texts that say the same but for typing and a few words, one definition for answers and prompts:

    text -> words -> shingles (hashes of its three-word sequences) -> MinHash signature -> candidates -> Jaccard >= NEAR

Candidates come from banded MinHash (Broder 1997) and are compared exactly; the number of comparisons is linear in the
number of texts.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from prospect.errors import ConfigError, DataError
from prospect.feedback.load import Feedback, collector_paused
from prospect.feedback.load import digest as digest_of
from prospect.feedback.messages import moment
from prospect.feedback.records import (
    Completion,
    Message,
    MessageTree,
    Record,
    at,
    part_of,
    prompt_digests,
    prompt_or_text,
    readable,
)

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


TELLING_WORDS = 8
"""An answer of so many words that stands in another prompt shows one conversation; a shorter one only together with
the turn that it answers."""
COMMON = 0.5
"""A three-word sequence that more than this share of the conversations have is their form, not what they are about."""
FORM = 20
"""Among fewer conversations than this nothing counts as form."""
_SYSTEM = ("system", "developer")
_ANY_TURN = -1


@dataclass(frozen=True, slots=True)
class Groups:
    """Numbers aligned with the records, from 0 in the order of first appearance; each coarser than the one before.

    `prompt`: equal prompts. `conversation`: also what comes from one conversation. `group`: also near duplicates; a
    split keeps these together.
    """

    prompt: tuple[int, ...]
    conversation: tuple[int, ...]
    group: tuple[int, ...]


@collector_paused()
def groups(records: Sequence[Record]) -> Groups:
    """What belongs together among `records`."""
    prompts = _Prompts.of(records)
    components = Components(len(prompts.tree))
    prompt = components.numbers(prompts.nodes)
    _join_ids(prompts, records, components)
    _join_beginnings(prompts, components)
    _join_text_beginnings(prompts, records, components)
    _join_answers(prompts, records, components)
    conversation = components.numbers(prompts.nodes)
    _join_same_words(prompts, components)
    _join_near(prompts, components)
    return Groups(prompt, conversation, components.numbers(prompts.nodes))


@dataclass(frozen=True, slots=True)
class _MessageWords:
    """A message's words: a digest of them (empty where there are none) and their shingles."""

    digest: bytes
    shingles: Shingles


@dataclass(frozen=True, slots=True)
class _Prompts:
    """The records' prompts in one tree. `nodes` are aligned with the records; `distinct` are the different ones,
    ascending, so that beginnings come first; `speaks[node]`: somebody but the system and the assistant says something
    up to it; `message_words` is by the numbers of messages."""

    tree: MessageTree
    nodes: list[int]
    distinct: list[int]
    speaks: list[bool]
    message_words: dict[int, _MessageWords]

    @classmethod
    def of(cls, records: Sequence[Record]) -> _Prompts:
        tree = MessageTree()
        nodes = [tree.add(prompt_or_text(record)) for record in records]
        speaks, message_words, shingle = [False], dict[int, _MessageWords](), Shingler()
        for node in range(1, len(tree)):
            message, number = tree.message[node], tree.number[node]
            role = "user" if isinstance(message, str) else message.get("role")
            speaks.append(speaks[tree.parent[node]] or role not in (*_SYSTEM, "assistant"))
            if number not in message_words:
                # The system's messages are the same in many conversations, and count for nothing.
                spoken = [] if role in _SYSTEM else words(readable(message))
                digest = hashlib.blake2b(" ".join(spoken).encode("utf-8", "surrogatepass"), digest_size=16).digest()
                message_words[number] = _MessageWords(digest if spoken else b"", shingle(spoken))
        return cls(tree, nodes, sorted(set(nodes)), speaks, message_words)


def _join_ids(prompts: _Prompts, records: Sequence[Record], components: Components) -> None:
    """One conversation's id."""
    first: dict[str, int] = {}
    for node, record in zip(prompts.nodes, records, strict=True):
        for name in record.conversations:
            components.join(first.setdefault(name, node), node)


def _join_beginnings(prompts: _Prompts, components: Components) -> None:
    """Prompts of messages that begin others. A beginning in which nobody asks anything (a system message, a greeting)
    is no conversation yet."""
    tree, distinct = prompts.tree, set(prompts.distinct)
    nearest = [-1] * len(tree)  # the last prompt on the way to a node, itself included
    for node in range(1, len(tree)):
        above = nearest[tree.parent[node]]
        if node in distinct and prompts.speaks[node]:
            if above >= 0:
                components.join(above, node)
            above = node
        nearest[node] = above


def _join_text_beginnings(prompts: _Prompts, records: Sequence[Record], components: Components) -> None:
    """Text prompts that begin others: together with their answer, with more than one line, or up to the end of a line.
    (A single line that goes on is another question: "What is 2" and "What is 2 + 2?".)"""
    texts: list[tuple[str, bool, int]] = []  # (text, whether it ends with the prompt's answer, the prompt)
    plain: dict[int, str] = {}
    for node, record in zip(prompts.nodes, records, strict=True):
        prompt = prompts.tree.message[node]
        if not isinstance(prompt, str) or not prompt.strip():
            continue
        if node not in plain:
            plain[node] = " ".join(prompt.split())
            texts.append((plain[node], False, node))
        answers = [" ".join(completion.text.split()) for completion in record.completions if record.prompt]
        texts += [(plain[node] + space + answer, True, node) for answer in answers if answer for space in ("", " ")]
    texts.sort()
    beginnings: list[tuple[str, bool, int]] = []  # each begins all that follow it
    for text, answered, node in texts:
        while beginnings and not text.startswith(beginnings[-1][0]):
            beginnings.pop()
        for start, whole, earlier in reversed(beginnings) if not answered else ():
            inside_word = text[len(start) - 1 : len(start) + 1].isalnum() and len(text) > len(start)
            if earlier != node and not inside_word and (whole or _ends_turn(prompts, earlier, node)):
                components.join(earlier, node)
                break
        beginnings.append((text, answered, node))


def _ends_turn(prompts: _Prompts, beginning: int, node: int) -> bool:
    """Whether a text that begins another one ends where a turn may end."""
    start, text = readable(prompts.tree.message[beginning]).strip(), readable(prompts.tree.message[node])
    return "\n" in start or text.lstrip()[len(start) :].lstrip(" \t\r").startswith("\n")


def _join_answers(prompts: _Prompts, records: Sequence[Record], components: Components) -> None:
    """Answers that stand verbatim in another prompt, as where a chat was cut to its last turns or its system message
    changed. An answer to several prompts is a phrase, and shows nothing."""
    tree = prompts.tree
    prompts_of: dict[int, dict[int, set[int]]] = {}  # {answer: {the turn it answers, or ANY_TURN: prompts}}
    for node, record in zip(prompts.nodes, records, strict=True):
        if isinstance(tree.message[node], str) or not prompts.speaks[node]:
            continue
        for completion in record.completions:
            content = completion.content
            message: Message = {"role": "assistant", "content": content} if isinstance(content, str) else content
            answer = tree.find_message(message)
            if answer is not None:
                text = readable(message)
                telling = len(text) > 2 * TELLING_WORDS and len(words(text)) >= TELLING_WORDS
                before = _ANY_TURN if telling else tree.number[node]
                prompts_of.setdefault(answer, {}).setdefault(before, set()).add(node)
    answered: dict[int, int] = {}  # {where an answer ends inside a prompt: the prompt that it answers}
    for node in range(1, len(tree)):
        turns = prompts_of.get(tree.number[node])
        if turns is not None:
            answers = turns.get(_ANY_TURN) or turns.get(tree.number[tree.parent[node]], set())
            if len(answers) == 1:
                (answered[node],) = answers
    distinct = set(prompts.distinct)
    nearest = [-1] * len(tree)  # the prompt answered last on the way to a node
    for node in range(1, len(tree)):
        above = nearest[tree.parent[node]]
        nearest[node] = answered.get(node, above)
        if above >= 0 and node in answered:
            components.join(above, answered[node])
        if nearest[node] >= 0 and node in distinct:
            components.join(nearest[node], node)


def _join_same_words(prompts: _Prompts, components: Components) -> None:
    """Prompts that differ in case, punctuation, white space or the system's messages alone."""
    tree, first = prompts.tree, dict[bytes, int]()
    digest = [b""]
    for node in range(1, len(tree)):
        above, own = digest[tree.parent[node]], prompts.message_words[tree.number[node]].digest
        digest.append(hashlib.blake2b(above + own, digest_size=16).digest() if own else above)
    for node in prompts.distinct:
        if digest[node]:
            components.join(first.setdefault(digest[node], node), node)


def _join_near(prompts: _Prompts, components: Components) -> None:
    """Near duplicates, by the three-word sequences of their messages without those that are common form."""
    tree, distinct = prompts.tree, set(prompts.distinct)
    above: dict[int, int] = {}  # the longest other prompt that begins this one, or the root
    parts: dict[int, list[int]] = {}  # the messages since then
    for start in prompts.distinct:
        parts[start], node = [tree.number[start]], tree.parent[start]
        while node > 0 and node not in distinct:
            parts[start].append(tree.number[node])
            node = tree.parent[node]
        above[start] = node
    shingles = {number: each.shingles for number, each in prompts.message_words.items()}
    common = _common(shingles, {(components.root(node), number) for node in distinct for number in parts[node]})
    if len(common):
        shingles = {number: own[~np.isin(own, common)] for number, own in shingles.items()}

    def shingles_of(node: int) -> Shingles:
        path = [shingles[tree.number[node]]]
        while (node := tree.parent[node]) > 0:
            path.append(shingles[tree.number[node]])
        return path[0] if len(path) == 1 else np.unique(np.concatenate(path))

    place = {number: i for i, number in enumerate(shingles)}
    signature = signatures(list(shingles.values()))
    least: dict[int, npt.NDArray[np.uint32]] = {0: signatures([EMPTY])[0]}
    for node in prompts.distinct:
        least[node] = np.minimum(least[above[node]], signature[[place[number] for number in parts[node]]].min(axis=0))
    # By their digests, so that the order of the records plays no part; without what is form alone.
    ordered = sorted(prompts.distinct, key=tree.digest.__getitem__)
    items = [node for node in ordered if not np.array_equal(least[node], least[0])]
    if items:
        join_near(components, items, np.stack([least[node] for node in items]), shingles_of)


def _common(shingles: Mapping[int, Shingles], spoken: set[tuple[int, int]]) -> Shingles:
    """The shingles that most conversations have: a template's text. `spoken` are (conversation, message number)."""
    count = len({conversation for conversation, _ in spoken})
    if count < FORM:
        return EMPTY
    pairs = sorted(spoken)
    flat = np.concatenate([shingles[number] for _, number in pairs])
    often = _more_than(COMMON * count, flat)
    if not len(often):
        return often
    # A conversation counts once, however many of its messages have a sequence.
    owner = np.repeat([conversation for conversation, _ in pairs], [len(shingles[number]) for _, number in pairs])
    there = np.isin(flat, often)
    once = np.unique(np.stack([owner[there], flat[there].astype(np.int64)]), axis=1)
    return _more_than(COMMON * count, once[1].astype(np.uint32))


def _more_than(times: float, values: Shingles) -> Shingles:
    distinct, counts = np.unique(values, return_counts=True)
    return distinct[counts > times]


# The split

CLASSES = (True, False, None)
"""Thumb up, thumb down, no thumb."""


def split(records: Sequence[Record], fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """(training, held-out) records, in the order of `records`: about `fraction` of the completions of each class held
    out, at least one group on either side, none on both.

    Which groups are held out depends on their texts, `fraction` and `seed`, not on the order of the records. Raises
    DataError where there is one group only, or where the groups are too large for anything near the fraction.
    """
    numbers = groups(records)
    counts = [[0, 0, 0] for _ in range(max(numbers.group, default=-1) + 1)]
    digests: list[bytes] = [b""] * len(counts)
    for record, group, digest in zip(records, numbers.group, prompt_digests(records), strict=True):
        for completion in record.completions:
            counts[group][CLASSES.index(completion.label)] += 1
        digests[group] = min(digests[group], digest) if digests[group] else digest
    if len(counts) < 2:
        raise DataError(f"--eval-fraction holds out whole groups, but there is only one{_why(records, numbers)}")
    order = sorted(range(len(counts)), key=lambda g: hashlib.sha256(f"split {seed} ".encode() + digests[g]).digest())
    chosen = _choose(counts, order, fraction)
    rows, count = sum(map(sum, counts)), sum(sum(counts[g]) for g in chosen)
    if not fraction / 2 <= count / rows <= max(2 * fraction, 0.5) and count != 1:
        raise DataError(
            f"--eval-fraction {fraction:g} comes to {100 * count / rows:.2g} % of the rows, since it holds out whole "
            f"groups and the largest has {100 * max(map(sum, counts)) / rows:.3g} %{_why(records, numbers)}"
        )
    train = [record for record, group in zip(records, numbers.group, strict=True) if group not in chosen]
    return train, [record for record, group in zip(records, numbers.group, strict=True) if group in chosen]


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
    chosen: set[int] = set()
    for group in order:
        after = [a + b for a, b in zip(sums, counts[group], strict=True)]
        if distance(after) < distance(sums) and len(chosen) < len(order) - 1:
            sums = after
            chosen.add(group)
    return chosen or {min(order, key=lambda group: distance(counts[group]))}


def split_since(feedback: Feedback, date: str) -> tuple[Feedback, Feedback]:
    """(training, held-out) feedback: the answers judged before `date`, and those judged since in groups of which none
    is trained. What was judged since in a group from before is neither, and counted in the notes: training on it would
    tell the future, and its prompt is no news.

    Raises ConfigError where `date` is no time, DataError where an answer has none or one side is empty.
    """
    try:
        start = moment(date, "--eval-since")
    except DataError as error:
        raise ConfigError(error.message) from None
    answers = [completion for record in feedback.records for completion in record.completions]
    if undated := [completion for completion in answers if not completion.at]:
        raise DataError(
            f"--eval-since places answers by their time, but {len(undated)} of {len(answers)} have none (at), such as "
            f"{at(undated[0])}. Write it in a column at (prospect convert IN OUT.jsonl --map at=COLUMN), or hold out "
            "with --eval-fraction"
        )
    numbers = groups(feedback.records).group
    late = [[_is_since(start, completion) for completion in record.completions] for record in feedback.records]
    before = {group for group, flags in zip(numbers, late, strict=True) if not all(flags)}
    train: list[Record] = []
    held: list[Record] = []
    neither = 0
    for record, group, flags in zip(feedback.records, numbers, late, strict=True):
        if group not in before:
            held.append(record)
        else:
            neither += sum(flags)
            if early := [i for i, flag in enumerate(flags) if not flag]:
                train.append(part_of(record, early))
    if not train or not held:
        times = sorted(completion.at for completion in answers)
        side = "trained on" if not train else "held out"
        raise DataError(
            f"--eval-since {date} leaves nothing to be {side}: the answers are from {times[0]} to {times[-1]}"
            + (f", and {neither} of those since then are to prompts or in conversations from before" if neither else "")
        )
    note = f"{sum(len(record.completions) for record in held)} answers judged since {date} are held out"
    if neither:
        note += (
            f"; {neither} others judged since then are to prompts or in conversations from before: they are neither "
            "trained nor held out"
        )
    apart = replace(feedback, records=tuple(held), digest=digest_of(held), notes=())
    return replace(feedback, records=tuple(train), notes=(*feedback.notes, note)), apart


def _is_since(start: str, completion: Completion) -> bool:
    return completion.at.removesuffix("Z") >= start.removesuffix("Z")  # "20" stands before "20.5", "20Z" would not


def _why(records: Sequence[Record], numbers: Groups) -> str:
    """What makes the largest group one, and what to do about it."""
    group, _ = Counter(numbers.group).most_common(1)[0]
    members = [i for i, g in enumerate(numbers.group) if g == group]
    names = Counter(name for i in members for name in records[i].conversations)
    talks = len({numbers.conversation[i] for i in members})
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
