"""Ids of long texts that come one after another, each beginning like the one before: only what is new is tokenised.

A tokenizer first looks for special tokens and tokenises what stands between them piece by piece, so the ids of a text
are those of its pieces, each from one special token to the next. (That holds for special tokens that neither take
blanks beside them nor depend on letters beside them; and it is compared with the ids of the whole text the first time,
and whenever a text is twice as long as the last one compared.) Arrays share their memory: an array of ids that goes on
where another one ends is that array, longer.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from prospect.data.quotes import Quotes
from prospect.data.textids import TextIds

Ids = npt.NDArray[np.int32]
LONG = 4096
"""Characters of a long text."""


@dataclass(frozen=True, slots=True)
class Start:
    """A long text's `ids`, read-only. Its last piece begins at the character `head` and has the ids `tail`; `lost` says
    whether the tokenizer does not give back what stands before."""

    head: int
    ids: Ids
    tail: list[int]
    lost: bool


class GrowingIds:
    """The ids of the last long text, cut before its special tokens: `_starts[i]` characters and `_counts[i]` ids stand
    before piece i, and `_lost[i]` says whether the tokenizer does not give back some piece before it."""

    def __init__(self, texts: TextIds) -> None:
        self._texts = texts
        added = list(texts.tokenizer.added_tokens_decoder.values())
        firm = [t for t in added if not t.normalized]
        self._cutting = {t.content for t in firm if t.special and not (t.lstrip or t.rstrip) and t.content.strip()}
        if any(t.single_word for t in added) or getattr(texts.tokenizer, "backend_tokenizer", None) is None:
            self._cutting = set()
        spelled = sorted((t.content for t in firm if t.content), key=len, reverse=True)
        self._token = re.compile("|".join(map(re.escape, spelled)) or "(?!)")
        self._memory = np.empty(0, np.int32)
        self._used = 0
        self._forget("")

    def _forget(self, text: str) -> None:
        self._text, self._quotes, self._compared = text, Quotes(), 0
        self._starts, self._counts, self._lost = [0], [0], [False]

    def start(self, text: str, quotes: Quotes) -> Start | None:
        """The ids of a text; None where it is short, is unlike the text before, or has no special token."""
        if len(text) < LONG or not self._cutting:
            return None
        if not self._text or not text.startswith(self._text[:LONG]):
            self._forget(text)
            return None
        self._go_on(text, quotes)
        head, count = self._starts[-1], self._counts[-1]
        if head >= 2 * self._compared:
            self._compared = head
            if self._texts.batch([(text[:head], quotes)])[0] != self._memory[:count].tolist():
                self._cutting = set()
                return None
        tail = self._texts.batch([(text[head:], quotes)])[0]
        self._write(count, tail)
        ids = self._memory[: count + len(tail)]
        ids.flags.writeable = False
        return Start(head, ids, tail, self._lost[-1])

    def _go_on(self, text: str, quotes: Quotes) -> None:
        """Keep the pieces that the text shares with the one before, and tokenise the others but the last."""
        kept = len(self._starts) - 1
        if not text.startswith(self._text[: self._starts[-1]]):
            kept = bisect_right(self._starts, 0, key=lambda start: not text.startswith(self._text[:start])) - 1
        # Whether a special token stands at the last of these cuts is seen from the one before.
        kept = max(0, kept - 1) if quotes.agrees(self._quotes, text[: self._starts[kept]]) else 0
        for values in (self._starts, self._counts, self._lost):
            del values[kept + 1 :]
        first = self._starts[-1]
        cuts = [m.start() for m in self._token.finditer(text, first) if m.group() in self._cutting]
        cuts = [cut for cut in cuts if cut > first]
        pieces = [text[a:b] for a, b in pairwise([first, *cuts])]
        ids = self._texts.batch([(piece, quotes) for piece in pieces])
        for cut, piece, one, again in zip(cuts, pieces, ids, self._texts.decode(ids), strict=True):
            self._write(self._counts[-1], one)
            self._starts.append(cut)
            self._counts.append(self._counts[-1] + len(one))
            self._lost.append(self._lost[-1] or not self._texts.same(quotes.unquote(piece), again))
        self._text, self._quotes = text, quotes

    def _write(self, start: int, ids: list[int]) -> None:
        """Have `ids` behind the first `start` ones, in memory where no array that was given away has others there."""
        end = start + len(ids)
        given = self._memory[start : min(end, self._used)].tolist()
        differs = given != ids[: len(given)]
        if differs or end > len(self._memory):
            memory = np.empty(end if differs else 2 * end, np.int32)
            memory[:start] = self._memory[:start]
            self._memory, self._used = memory, start
        self._memory[start:end] = ids
        self._used = max(self._used, end)
