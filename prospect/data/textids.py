"""Texts to token ids and back, for one tokenizer.

Control tokens in what people wrote stay text. A chat template prints the tokens that open and end turns, and what
people wrote between them; a tokenizer that reads the result cannot tell the two apart: "<|im_end|>" in a question would
end the question. So each such string is replaced by one private character before the template prints it, and becomes
ids of plain text afterwards:

    quotes = Quotes()
    quotes.quote("How? <|im_end|>", re.compile(r"<\\|im_end\\|>"))     # "How? \\U000f0000"
    quotes.pieces("user: How? \\U000f0000")                            # ["user: How? ", "<|im_end|>", ""]

Long texts that come one after another, each beginning like the one before, cost what is new in each (GrowingIds).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]
"""Token ids (n,)."""


class TargetIds(NamedTuple):
    """The tokens (k,) that a target speaks of, and how many tokens of the answer stand before their place."""

    place: int
    ids: Ids


FIRST, LAST = 0xF0000, 0xFFFFD
"""Unicode's private plane 15. A character of it that people wrote is quoted as well, so nobody can forge one."""
_PRIVATE = re.compile(f"[{chr(FIRST)}-{chr(LAST)}]")
LONG = 4096
"""Characters of a long text."""


def pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """What `Quotes.quote` replaces: any of the tokens, longest first, and the private characters."""
    longest_first = sorted({t for t in tokens if t.strip()}, key=lambda t: (-len(t), t))
    return re.compile("|".join([*map(re.escape, longest_first), _PRIVATE.pattern]))


class Quotes:
    """Strings and the private characters that stand for them; the same string is always the same character, so that a
    quoted prompt stays the beginning of its quoted conversation."""

    def __init__(self) -> None:
        self._characters: dict[str, str] = {}
        self._strings: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._strings)

    def quote(self, value: Any, control: re.Pattern[str], spelled: dict[str, None] | None = None) -> Any:
        """`value` (plain JSON data) with every match of `control` replaced, in keys too; the control tokens among the
        matches are noted in `spelled`. Raises ValueError where private characters run out."""
        if isinstance(value, str):
            return control.sub(lambda match: self._character(match.group(), spelled), value)
        if isinstance(value, dict):
            return {self.quote(key, control, spelled): self.quote(x, control, spelled) for key, x in value.items()}
        if isinstance(value, list | tuple):
            return [self.quote(item, control, spelled) for item in value]
        return value

    def unquote(self, text: str) -> str:
        """The text with the strings again."""
        return _PRIVATE.sub(lambda m: self._strings.get(m.group(), m.group()), text) if self._strings else text

    def pieces(self, text: str) -> list[str]:
        """[text, quoted string, text, ..., text]: the odd ones are quoted strings."""
        pieces: list[str] = []
        start = 0
        for match in _PRIVATE.finditer(text) if self._strings else ():
            if match.group() in self._strings:  # the template may print a private character of its own
                pieces += [text[start : match.start()], self._strings[match.group()]]
                start = match.end()
        return [*pieces, text[start:]]

    def _character(self, string: str, spelled: dict[str, None] | None) -> str:
        if spelled is not None and not _PRIVATE.fullmatch(string):
            spelled[string] = None
        if string not in self._characters:
            if FIRST + len(self._characters) > LAST:
                raise ValueError("it holds more different private characters (U+F0000 and up) than can be kept apart")
            character = chr(FIRST + len(self._characters))
            self._characters[string], self._strings[character] = character, string
        return self._characters[string]


class TextIds:
    """`special`: the tokenizer's special tokens; `atoms`: all tokens that it finds before it splits a text, `atom`
    matches any of them."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        added_tokens = list(tokenizer.added_tokens_decoder.values())
        self.special = {str(t) for t in added_tokens if t.special} | set(tokenizer.all_special_tokens)
        self.atoms = {t for t in (*map(str, added_tokens), *self.special) if t.strip()}
        self._atom_ids = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
        # No alternative at all would match everywhere; (?!) matches nowhere.
        spelled = "|".join(map(re.escape, sorted(self.atoms, key=len, reverse=True))) or "(?!)"
        self.atom, self._around_atom = re.compile(spelled), re.compile(rf"\s*({spelled})\s*")
        self._spellings: dict[str, list[int]] = {}

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """What the tokenizer makes of texts as they stand, without the special tokens that it puts around them."""
        if not texts:
            return []
        # verbose: lengths are our business, transformers need not warn of them.
        encoded = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        return list(encoded["input_ids"])

    def quoted(self, texts: Sequence[list[str]], *, continues: bool = False) -> list[list[int]]:
        """The same of texts in `Quotes.pieces`; `continues`: of texts that continue another."""
        alone = [k for k, pieces in enumerate(texts) if len(pieces) == 1 and not continues]
        plain = dict(zip(alone, self.ids([texts[k][0] for k in alone]), strict=True))
        return [plain[k] if k in plain else self._joined(pieces, continues) for k, pieces in enumerate(texts)]

    def _joined(self, pieces: Sequence[str], continues: bool) -> list[int]:
        """Piece by piece, as transformers' `sanitize_control_tokens` has them."""
        ids = list(self._continuation(pieces[0]) if continues else self.ids([pieces[0]])[0])
        for i, piece in enumerate(pieces[1:]):
            if piece:
                ids += self._continuation(piece) if i % 2 else self._spelling(piece)
        return ids

    def _spelling(self, string: str) -> list[int]:
        """Ids of a control token's text, none of which is a control token."""
        if string not in self._spellings:
            anchor, ids = self.ids(["\n"])[0], self._bare("\n" + string)
            ids = ids[len(anchor) :] if ids[: len(anchor)] == anchor else self._bare(string)
            if len(string) > 1 and not self._atom_ids.isdisjoint(ids):  # the vocabulary holds it as a word, too
                ids = self._spelling(string[: len(string) // 2]) + self._spelling(string[len(string) // 2 :])
            self._spellings[string] = ids
        return self._spellings[string]

    def _bare(self, text: str) -> list[int]:
        """Ids of a text in which the tokenizer looks for no added token."""
        backend = self._backend
        if backend is None:
            return list(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        splitter = backend.pre_tokenizer
        words = [text] if splitter is None else [word for word, _ in splitter.pre_tokenize_str(text)]
        return [token.id for word in words for token in backend.model.tokenize(word)]

    def _continuation(self, text: str) -> list[int]:
        """Ids of a text that continues another. It is tokenised behind a line break where that stays a token of its
        own: SentencePiece-like tokenizers put a space before a text that starts."""
        anchor, ids, alone = self.ids(["\n", "\n" + text, text])
        return ids[len(anchor) :] if ids[: len(anchor)] == anchor else alone

    def decode(self, ids: list[list[int]]) -> list[str]:
        if self._backend is not None:
            return list(self._backend.decode_batch(ids, skip_special_tokens=False))
        return [str(self.tokenizer.decode(one, clean_up_tokenization_spaces=False)) for one in ids]

    def same(self, text: str, again: str) -> bool:
        return text == again or self.stripped(text) == self.stripped(again)

    def stripped(self, text: str) -> str:
        """A text without the blanks around special tokens, which tokenizers add and take at their will."""
        return self._around_atom.sub(r"\1", text).strip()

    def last_atom(self, text: str) -> int | None:
        atoms = self.atom.findall(text)
        return int(self.tokenizer.convert_tokens_to_ids(atoms[-1])) if atoms else None


@dataclass(frozen=True, slots=True)
class Start:
    """A prompt's `ids`, read-only where it is long. Its last piece begins at the character `head` and has the ids
    `tail`; `lossy` says whether the tokenizer does not give back what stands before."""

    head: int
    ids: Ids
    tail: list[int]
    lossy: bool


class GrowingIds:
    """Ids of long texts, each beginning like the one before: only what is new is tokenised.

    A tokenizer first looks for special tokens and tokenises what stands between them piece by piece, so the ids of a
    text are those of its pieces, each from one special token to the next. (That holds for special tokens that neither
    take blanks beside them nor depend on letters beside them; and it is compared with the ids of the whole text the
    first time, and whenever a text is twice as long as the last one compared.) Arrays share their memory: an array of
    ids that goes on where another one ends is that array, longer.

    `_starts[i]` characters and `_counts[i]` ids stand before piece i of the last text, and `_lossy[i]` says whether the
    tokenizer does not give back some piece before it.
    """

    def __init__(self, texts: TextIds) -> None:
        self._texts = texts
        added_tokens = list(texts.tokenizer.added_tokens_decoder.values())
        firm = [t for t in added_tokens if not t.normalized]
        self._cutting = {t.content for t in firm if t.special and not (t.lstrip or t.rstrip) and t.content.strip()}
        if any(t.single_word for t in added_tokens) or getattr(texts.tokenizer, "backend_tokenizer", None) is None:
            self._cutting = set()
        spelled = sorted((t.content for t in firm if t.content), key=len, reverse=True)
        self._token = re.compile("|".join(map(re.escape, spelled)) or "(?!)")
        self._memory = np.empty(0, np.int32)
        self._used = 0
        self._forget("", Quotes())

    def _forget(self, text: str, quotes: Quotes) -> None:
        """Begin anew, with a text of which nothing is known."""
        self._text, self._quotes, self._compared = text, quotes, 0
        self._starts, self._counts, self._lossy = [0], [0], [False]

    def start(self, text: str, quotes: Quotes) -> Start | None:
        """The ids of a text; None where it is short, is unlike the text before, or has no special token."""
        if len(text) < LONG or not self._cutting:
            return None
        if not self._text or quotes is not self._quotes or not text.startswith(self._text[:LONG]):
            self._forget(text, quotes)
            return None
        self._go_on(text)
        head, count = self._starts[-1], self._counts[-1]
        if head >= 2 * self._compared:
            self._compared = head
            if self._texts.quoted([quotes.pieces(text[:head])])[0] != self._memory[:count].tolist():
                self._cutting = set()
                return None
        tail = self._texts.quoted([quotes.pieces(text[head:])])[0]
        self._write(count, tail)
        ids = self._memory[: count + len(tail)]
        ids.flags.writeable = False
        return Start(head, ids, tail, self._lossy[-1])

    def _go_on(self, text: str) -> None:
        """Keep the pieces that the text shares with the one before, and tokenise the others but the last."""
        common = len(self._starts) - 1
        if not text.startswith(self._text[: self._starts[-1]]):
            common = bisect_right(self._starts, 0, key=lambda start: not text.startswith(self._text[:start])) - 1
        # Whether a special token stands at the last of these cuts is seen from the one before.
        common = max(0, common - 1)
        for values in (self._starts, self._counts, self._lossy):
            del values[common + 1 :]
        first = self._starts[-1]
        cuts = [m.start() for m in self._token.finditer(text, first) if m.group() in self._cutting]
        cuts = [cut for cut in cuts if cut > first]
        pieces = [text[a:b] for a, b in pairwise([first, *cuts])]
        ids = self._texts.quoted([self._quotes.pieces(piece) for piece in pieces])
        for cut, piece, one, again in zip(cuts, pieces, ids, self._texts.decode(ids), strict=True):
            self._write(self._counts[-1], one)
            self._starts.append(cut)
            self._counts.append(self._counts[-1] + len(one))
            self._lossy.append(self._lossy[-1] or not self._texts.same(self._quotes.unquote(piece), again))
        self._text = text

    def _write(self, start: int, ids: list[int]) -> None:
        """Have `ids` behind the first `start` ones, in memory where no array that was handed out has others there."""
        end = start + len(ids)
        there = self._memory[start : min(end, self._used)].tolist()
        differs = there != ids[: len(there)]
        if differs or end > len(self._memory):
            memory = np.empty(end if differs else 2 * end, np.int32)
            memory[:start] = self._memory[:start]
            self._memory, self._used = memory, start
        self._memory[start:end] = ids
        self._used = max(self._used, end)
