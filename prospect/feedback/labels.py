"""Thumbs, read strictly: one file speaks one vocabulary, and nothing is guessed.

A cast to bool would make -1 and the text "false" desirable, so every value is looked up instead, and the file as a
whole is checked once all of it was seen: 1 may stand beside 0 or beside -1, never beside both.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

from prospect.errors import DataError

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
    raise DataError(f"label {value!r} is no thumb. A file uses one of {VOCABULARIES}")


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
        raise DataError(f'label "{value}" is no thumb. A file uses one of {VOCABULARIES}')
    if number not in _NUMBERS:
        raise _score_given(value)
    word, desirable = _NUMBERS[number]
    return desirable, _NUMBER_TEXT, word


def _score_given(value: object) -> DataError:
    return DataError(
        f'label {value} is a score where a thumb should be. Name the column "score" and say where desirable begins '
        "with --threshold mean, median or a number"
    )


class Labels:
    """The labels of one file, remembered by line, so that the file's vocabulary can be judged at its end."""

    def __init__(self) -> None:
        self._seen: list[tuple[int, str, str, Any]] = []

    def read(self, value: Any, line: int) -> bool:
        """Whether `value` says desirable. Raises DataError where it is no thumb."""
        desirable, vocabulary, word = thumb(value)
        self._seen.append((line, vocabulary, word, value))
        return desirable

    def strays(self) -> dict[int, str]:
        """{line: message} for every line outside the file's one vocabulary: the most frequent, or the first of equals.

        Where 1, 0 and -1 all occur, both 0 and -1 are strays, since either may stand for "nobody judged".
        """
        found: dict[int, str] = {}
        counts = Counter(vocabulary for _, vocabulary, _, _ in self._seen)
        if not counts:
            return found
        main = counts.most_common(1)[0][0]
        first = next(line for line, vocabulary, _, _ in self._seen if vocabulary == main)
        words = {word for _, vocabulary, word, _ in self._seen if vocabulary == main}
        for line, vocabulary, word, value in self._seen:
            if vocabulary != main:
                found.setdefault(
                    line,
                    f"label {value!r} belongs to {vocabulary}, but this file's labels are {main} (first on line "
                    f"{first}). Write all labels of a file in one vocabulary",
                )
            elif word != "1" and {"0", "-1"} <= words:
                found.setdefault(
                    line,
                    f'label {value!r}: the file has both 0 and -1, so one of them may mean "nobody judged". Leave out '
                    "those rows and keep 1/0 or 1/-1",
                )
        return found
