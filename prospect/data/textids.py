"""Texts to token ids and back, for one tokenizer: quoted control tokens stay text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from prospect.data.quotes import Quotes


class TextIds:
    """`special`: the tokenizer's special tokens; `atoms`: all tokens that it finds before it splits a text, `atom`
    matches any of them."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        added = list(tokenizer.added_tokens_decoder.values())
        self.special = {str(t) for t in added if t.special} | set(tokenizer.all_special_tokens)
        self.atoms = {t for t in (*map(str, added), *self.special) if t.strip()}
        self._atom_ids = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
        # No alternative at all would match everywhere; (?!) matches nowhere.
        spelled = "|".join(map(re.escape, sorted(self.atoms, key=len, reverse=True))) or "(?!)"
        self.atom, self._around_atom = re.compile(spelled), re.compile(rf"\s*({spelled})\s*")
        self._spellings: dict[str, list[int]] = {}

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        # verbose: lengths are our business, transformers need not warn of them.
        encoded = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        return list(encoded["input_ids"])

    def batch(self, texts: Sequence[tuple[str, Quotes]]) -> list[list[int]]:
        plain = iter(self.ids([text for text, quotes in texts if not quotes]))
        return [self.quoted(text, quotes) if quotes else next(plain) for text, quotes in texts]

    def quoted(self, text: str, quotes: Quotes, *, continues: bool = False) -> list[int]:
        """Ids of a text with quoted strings, piece by piece, as transformers' `sanitize_control_tokens` has them."""
        first, *rest = quotes.pieces(text)
        ids = list(self.continuation_ids(first) if continues else self.ids([first])[0])
        for i, piece in enumerate(rest):
            if piece:
                ids += self.continuation_ids(piece) if i % 2 else self.spelling(piece)
        return ids

    def spelling(self, string: str) -> list[int]:
        """Ids of a control token's text, none of which is a control token."""
        if string not in self._spellings:
            anchor, ids = self.ids(["\n"])[0], self.bare_ids("\n" + string)
            ids = ids[len(anchor) :] if ids[: len(anchor)] == anchor else self.bare_ids(string)
            if len(string) > 1 and not self._atom_ids.isdisjoint(ids):  # the vocabulary holds it as a word, too
                ids = self.spelling(string[: len(string) // 2]) + self.spelling(string[len(string) // 2 :])
            self._spellings[string] = ids
        return self._spellings[string]

    def bare_ids(self, text: str) -> list[int]:
        """Ids of a text in which the tokenizer looks for no added token."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return list(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        words = (
            [text] if backend.pre_tokenizer is None else [w for w, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        )
        return [token.id for word in words for token in backend.model.tokenize(word)]

    def decode(self, ids: list[list[int]]) -> list[str]:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:
            return list(backend.decode_batch(ids, skip_special_tokens=False))
        return [str(self.tokenizer.decode(one, clean_up_tokenization_spaces=False)) for one in ids]

    def same(self, text: str, again: str) -> bool:
        return text == again or self.bare(text) == self.bare(again)

    def bare(self, text: str) -> str:
        """A text without the blanks around special tokens, which tokenizers add and take at their will."""
        return self._around_atom.sub(r"\1", text).strip()

    def continuation_ids(self, text: str) -> list[int]:
        """Ids of a text that continues another. It is tokenised behind a line break where that stays a token of its
        own: SentencePiece-like tokenizers put a space before a text that starts."""
        anchor, ids, alone = self.ids(["\n", "\n" + text, text])
        return ids[len(anchor) :] if ids[: len(anchor)] == anchor else alone

    def last_atom(self, text: str) -> int | None:
        atoms = self.atom.findall(text)
        return int(self.tokenizer.convert_tokens_to_ids(atoms[-1])) if atoms else None


def ended(ids: list[int], end: int | None, ends: set[int]) -> list[int]:
    """`ids` with exactly one `end` at its end, or none; `ends` are all that may end a turn. Collected answers often
    carry their end token as text."""
    size = len(ids)
    while size and (ids[size - 1] in ends or ids[size - 1] == end):
        size -= 1
    return ids[:size] + ([] if end is None else [end])
