"""Thumbs, read strictly: one file speaks one vocabulary, and nothing is guessed.

A cast to bool would make -1 and the text "false" desirable, so every value is looked up instead, and the file as a
whole is checked once all of it was seen: 1 may stand beside 0 or beside -1, never beside both.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from prospect.errors import DataError, brief

VOCABULARIES = 'true/false, 1/0, 1/-1, "up"/"down", "good"/"bad", "desirable"/"undesirable", 👍/👎'
"""What a label may say, for people. The words may also stand as text, as they must in CSV: "true"/"false", "1"/"0"."""

_BOOLEANS, _NUMBERS, _NUMBERS_AS_TEXT = "true/false", "the numbers 1/0/-1", 'the numbers "1"/"0"/"-1" as text'
_NUMERIC = (_NUMBERS, _NUMBERS_AS_TEXT)
_NUMBER_WORDS = {1.0: "1", 0.0: "0", -1.0: "-1"}
_WORDS = {
    word: (word == up, vocabulary)
    for vocabulary, up, down in (
        ('"true"/"false" as text', "true", "false"),
        ('"up"/"down"', "up", "down"),
        ('"good"/"bad"', "good", "bad"),
        ('"desirable"/"undesirable"', "desirable", "undesirable"),
        ("👍/👎", "👍", "👎"),
    )
    for word in (up, down)
}
_AS_SCORES = (
    'Name the column "score" (prospect convert IN OUT.jsonl --map score=label) and say where desirable begins with '
    "--threshold mean, median or a number"
)
_SKIN_TONE = re.compile("[\U0001f3fb-\U0001f3ff\ufe0f]")


class _ScoreError(DataError):
    """A number that is no thumb, such as 0.85 or 4 stars, also where it stands as text."""


def thumb(value: Any) -> tuple[bool, str, str]:
    """(desirable, vocabulary, word) of one label. Raises DataError for whatever is no thumb, null included."""
    if isinstance(value, bool):
        return value, _BOOLEANS, str(value).lower()
    if value is None or value != value:  # NaN is how tables write null
        raise DataError("label is null. Every row needs a thumb: judge the row or leave it out")
    number, vocabulary = value, _NUMBERS
    if isinstance(value, str):
        word = _SKIN_TONE.sub("", value).strip().casefold()
        if word in _WORDS:
            return *_WORDS[word], word
        with suppress(ValueError):
            number, vocabulary = float(word), _NUMBERS_AS_TEXT
    if not isinstance(number, int | float) or number != number:
        text = f'"{brief(value, str)}"' if isinstance(value, str) else brief(value)
        raise DataError(f"label {text} is no thumb. A file uses one of {VOCABULARIES}")
    if number not in _NUMBER_WORDS:
        raise _ScoreError(f"label {brief(value, str)} is a score where a thumb should be. {_AS_SCORES}")
    return number == 1, vocabulary, _NUMBER_WORDS[number]


class Labels:
    """The vocabulary of a file's labels, made out from all of them before the first is read.

    `values` are (place, label as it stands there). A column holds one kind of value: beside 5 stars, 1 star is no thumb
    up, and beside true and false, "up" is a slip. The most frequent vocabulary is the file's, or the first of equals.
    """

    def __init__(self, values: Iterable[tuple[str, Any]]) -> None:
        counts: Counter[str] = Counter()
        first_place: dict[str, str] = {}
        self._numbers: set[str] = set()
        self._score: tuple[str, Any] | None = None
        for place, value in values:
            try:
                _, vocabulary, word = thumb(value)
            except _ScoreError:
                self._score = self._score or (place, value)
            except DataError:
                continue
            else:
                counts[vocabulary] += 1
                first_place.setdefault(vocabulary, place)
                if vocabulary in _NUMERIC:
                    self._numbers.add(word)
        self._vocabulary = counts.most_common(1)[0][0] if counts else ""
        self._first_place = first_place.get(self._vocabulary, "")

    @staticmethod
    def join(shards: Sequence[Labels]) -> None:
        """Make the numbers of several files of one layout one column: each file has its own words, but 5 stars in one
        say that a 1 in another is a star, too."""
        score = next((labels._score for labels in shards if labels._score is not None), None)
        numbers = {word for labels in shards for word in labels._numbers}
        for labels in shards:
            labels._score, labels._numbers = score, numbers

    def read(self, value: Any) -> bool:
        """Whether `value` says desirable. Raises DataError where it is no thumb, stands among scores or belongs to
        another vocabulary than the file's; where both 0 and -1 occur, for both."""
        desirable, vocabulary, word = thumb(value)
        numeric = vocabulary in _NUMERIC
        if self._score is not None and numeric:
            place, score = self._score
            raise DataError(
                f"label {brief(value, str)} stands among scores ({brief(score, str)} {place}), so it is one. "
                f"{_AS_SCORES}"
            )
        if vocabulary != self._vocabulary:
            raise DataError(
                f"label {brief(value)} belongs to {vocabulary}, but this file's labels are {self._vocabulary} (first "
                f"{self._first_place}). Write all labels of a file in one vocabulary"
            )
        if numeric and word != "1" and self._numbers.issuperset(("0", "-1")):
            raise DataError(
                f'label {brief(value)}: the data have both 0 and -1, so one of them may mean "nobody judged". Leave '
                "out those rows and keep 1/0 or 1/-1"
            )
        return desirable
