"""The vocabularies of thumbs, one per file, and everything that is none."""

from __future__ import annotations

from typing import Any

import pytest

from prospect.errors import DataError
from prospect.feedback.messages import Labels, thumb


def strays(*values: Any) -> dict[int, str]:
    """{line: message} of the labels that are refused in a file with these."""
    labels = Labels((f"on line {line}", value) for line, value in enumerate(values, 1))
    refused = {}
    for line, value in enumerate(values, 1):
        try:
            labels.read(value)
        except DataError as error:
            refused[line] = error.message
    return refused


@pytest.mark.parametrize(
    ("up", "down"),
    [
        (True, False),
        (1, 0),
        (1, -1),
        (1.0, -1.0),
        ("true", "false"),
        ("True", "FALSE"),
        ("1", "0"),
        ("1", "-1"),
        ("1.0", "0.0"),
        ("up", "down"),
        (" Up", "Down "),
        ("good", "bad"),
        ("desirable", "undesirable"),
        ("yes", "NO"),
        ("Like", "dislike"),
        ("thumbs_up", "thumbs_down"),
        ("Thumbs up", "thumb-down"),
        ("positive", "negative"),
        ("accepted", "rejected"),
        ("solved", "unsolved"),
        ("👍", "👎"),
        ("👍🏽", "👎\ufe0f"),
    ],
)
def test_every_vocabulary_reads_both_ways(up: Any, down: Any) -> None:
    assert thumb(up)[0] is True
    assert thumb(down)[0] is False
    assert strays(up, down, down, up) == {}


@pytest.mark.parametrize("value", ["maybe", "", "yep", "nope", "null", "nan", "👌", "upp", [True], {"label": True}])
def test_what_is_no_thumb_is_refused_with_the_vocabularies(value: Any) -> None:
    with pytest.raises(DataError, match="is no thumb") as error:
        thumb(value)
    assert str(value) in error.value.message
    assert '"desirable"/"undesirable"' in error.value.message


@pytest.mark.parametrize("value", [None, float("nan")])
def test_null_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match="label is null"):
        thumb(value)


@pytest.mark.parametrize("value", [0.85, 2, -2, 5, 1e300, 10**400, "0.85", "4", "-0.5", float("inf")])
def test_a_number_outside_is_a_score(value: Any) -> None:
    with pytest.raises(DataError, match=r'is a score where a thumb should be.*"score".*--threshold'):
        thumb(value)


@pytest.mark.parametrize(
    ("values", "stray_lines"),
    [
        ((True, True, 1), {3}),
        (("up", "down", "good"), {3}),
        (("good", "up", "down"), {1}),  # the majority is the vocabulary
        (("up", "good"), {2}),  # of equals, the first
        ((1, "1", 1), {2}),
        ((True, "true", True, False), {2}),
        (("1", "true", "1"), {2}),
        ((True, 1, 0, 0), {1}),
    ],
)
def test_two_vocabularies_in_a_file(values: tuple[Any, ...], stray_lines: set[int]) -> None:
    found = strays(*values)
    assert set(found) == stray_lines
    assert all("one vocabulary" in message for message in found.values())


@pytest.mark.parametrize("values", [(1, 1), (1, 0, 1), (0, 0), (-1, -1), (1, -1.0, 1.0)])
def test_one_goes_with_zero_or_with_minus_one(values: tuple[Any, ...]) -> None:
    assert strays(*values) == {}


def test_zero_beside_minus_one_is_ambiguous_on_both_sides() -> None:
    found = strays(1, 0, 1, -1, 1)
    assert set(found) == {2, 4}
    assert all("nobody judged" in message for message in found.values())


def test_a_stray_names_value_vocabulary_and_the_first_line_of_the_others() -> None:
    message = strays("up", "down", "up", 1)[4]
    assert "1" in message
    assert "the numbers 1/0/-1" in message
    assert '"up"/"down" (first on line 1)' in message
