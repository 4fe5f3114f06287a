"""Thumbs, read strictly: one file speaks one vocabulary, and nothing is guessed.

A cast to bool would make -1 and the text "false" desirable, so every value is looked up instead, and the file as a
whole is checked once all of it was seen: 1 may stand beside 0 or beside -1, never beside both.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from prospect.errors import DataError, brief

VOCABULARIES = 'true/false, 1/0, 1/-1, "up"/"down", "good"/"bad", "desirable"/"undesirable", 👍/👎'
"""What a label may say, for people. The words may also stand as text, as they must in CSV: "true"/"false", "1"/"0"."""

_NUMBERS = {1.0: ("1", True), 0.0: ("0", False), -1.0: ("-1", False)}
_WORDS = {
    word: (vocabulary, word == pair[0])
    for vocabulary, pair in (
        ('"true"/"false" as text', ("true", "false")),
        ('"up"/"down"', ("up", "down")),
        ('"good"/"bad"', ("good", "bad")),
        ('"desirable"/"undesirable"', ("desirable", "undesirable")),
        ("👍/👎", ("👍", "👎")),
    )
    for word in pair
}
_NUMBER, _NUMBER_TEXT = "the numbers 1/0/-1", 'the numbers "1"/"0"/"-1" as text'
_NUMBER_VOCABULARIES = (_NUMBER, _NUMBER_TEXT)
_AS_SCORES = (
    'Name the column "score" (prospect convert IN OUT.jsonl --map score=label) and say where desirable begins with '
    "--threshold mean, median or a number"
)
_SKIN_TONE = re.compile("[\U0001f3fb-\U0001f3ff\ufe0f]")


def thumb(value: Any) -> tuple[bool, str, str]:
    """(desirable, vocabulary, word) of one label. Raises DataError for whatever is no thumb, null included."""
    if isinstance(value, bool):
        return value, "true/false", str(value).lower()
    if value is None or value != value:  # NaN is how tables write null
        raise DataError("label is null. Every row needs a thumb: judge the row or leave it out")
    if isinstance(value, int | float):
        if value not in _NUMBERS:
            raise _score_given(value)
        word, desirable = _NUMBERS[float(value)]
        return desirable, _NUMBER, word
    if isinstance(value, str):
        return _word(value)
    raise DataError(f"label {brief(value)} is no thumb. A file uses one of {VOCABULARIES}")


def _word(value: str) -> tuple[bool, str, str]:
    word = _SKIN_TONE.sub("", value).strip().casefold()
    if word in _WORDS:
        vocabulary, desirable = _WORDS[word]
        return desirable, vocabulary, word
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise DataError(f'label "{brief(value, str)}" is no thumb. A file uses one of {VOCABULARIES}')
    if number not in _NUMBERS:
        raise _score_given(value)
    word, desirable = _NUMBERS[number]
    return desirable, _NUMBER_TEXT, word


def _score_given(value: object) -> DataError:
    return DataError(f"label {brief(value, str)} is a score where a thumb should be. {_AS_SCORES}")


class Labels:
    """The vocabulary of a file's labels, made out from all of them before the first is read.

    `values` are (place, label as it stands there). A column holds one kind of value: beside 5 stars, 1 star is no thumb
    up, and beside true and false, "up" is a slip. The most frequent vocabulary is the file's, or the first of equals.
    """

    def __init__(self, values: Iterable[tuple[str, Any]]) -> None:
        counts: Counter[str] = Counter()
        first: dict[str, str] = {}
        self._numbers: set[str] = set()
        self._score: tuple[str, Any] | None = None
        for place, value in values:
            if _is_number_but_no_thumb(value):
                self._score = self._score or (place, value)
                continue
            try:
                _, vocabulary, word = thumb(value)
            except DataError:
                continue
            counts[vocabulary] += 1
            first.setdefault(vocabulary, place)
            if vocabulary in _NUMBER_VOCABULARIES:
                self._numbers.add(word)
        self._main = counts.most_common(1)[0][0] if counts else ""
        self._first = first.get(self._main, "")

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
        numeric = vocabulary in _NUMBER_VOCABULARIES
        if self._score is not None and numeric:
            place, score = self._score
            raise DataError(
                f"label {brief(value, str)} stands among scores ({brief(score, str)} {place}), so it is one. "
                f"{_AS_SCORES}"
            )
        if vocabulary != self._main:
            raise DataError(
                f"label {brief(value)} belongs to {vocabulary}, but this file's labels are {self._main} (first "
                f"{self._first}). Write all labels of a file in one vocabulary"
            )
        if numeric and word != "1" and self._numbers.issuperset(("0", "-1")):
            raise DataError(
                f'label {brief(value)}: the data have both 0 and -1, so one of them may mean "nobody judged". Leave '
                "out those rows and keep 1/0 or 1/-1"
            )
        return desirable


def _is_number_but_no_thumb(value: Any) -> bool:
    """Whether a label is a score, such as 0.85 or 4 stars; also where it stands as text."""
    if isinstance(value, str):
        try:
            value = float(_SKIN_TONE.sub("", value))
        except ValueError:
            return False
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return False
    return value not in _NUMBERS
