"""Packing: what stands where in the row, and who sees whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from prospect.engine.attention import Scoring, attend, attend_plainly
from prospect.engine.packing import Branches, Segments, pack

Build = Callable[..., Any]


def ids(*values: Any) -> Any:
    return np.array(values, np.int32)


def test_layout_of_one_tree() -> None:
    packed = pack([Branches(ids(10, 11, 12), (ids(20, 21, 22), ids(30, 31, 32, 33)))])
    assert packed.input_ids.tolist() == [[10, 11, 12, 20, 21, 30, 31, 32]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 4, 5]]
    assert packed.predict.tolist() == [2, 3, 4, 2, 5, 6, 7]
    assert packed.targets.tolist() == [20, 21, 22, 30, 31, 32, 33]
    assert packed.offsets.tolist() == [0, 3, 7]
    assert packed.tokens == 8
    assert {packed.input_ids.dtype, packed.targets.dtype, packed.predict.dtype} == {torch.int64}


def test_single_tokens_add_nothing_to_the_row() -> None:
    packed = pack([Branches(ids(1), (ids(5),)), Branches(ids(2, 3), (ids(6), ids(7), ids(8, 9)))])
    assert packed.input_ids.tolist() == [[1, 2, 3, 8]]
    assert packed.position_ids.tolist() == [[0, 0, 1, 2]]
    assert packed.predict.tolist() == [0, 2, 2, 2, 3]
    assert packed.offsets.tolist() == [0, 1, 2, 3, 5]


def test_a_tree_needs_tokens() -> None:
    for prompt, completions in ((ids(), (ids(1),)), (ids(1), ()), (ids(1), (ids(1), ids()))):
        with pytest.raises(AssertionError):
            Branches(prompt, completions)


def plainly(*states: Any, segments: Segments, sliding_window: int | None, softcap: float | None = None) -> Any:
    scoring = Scoring(torch.float32, 1.0, sliding_window, softcap)
    return [attend_plainly(*states[1:4], segments, scoring)]


@pytest.mark.parametrize("window", [None, 1, 3, 4, 100])
@pytest.mark.parametrize("attend", [attend, plainly])
def test_who_sees_whom(trees: Build, window: int | None, attend: Build) -> None:
    """Values are unit vectors and keys are zero, so attention weights show exactly which tokens a token attends to."""
    branches = trees([(4, [3, 1, 6, 2]), (1, [1]), (2, [9]), (7, [2, 2])])
    packed = pack(branches)
    t = packed.tokens
    zeros, values = torch.zeros(1, 1, t, 8), torch.eye(t)[None, None]
    kwargs = {"segments": packed.segments, "sliding_window": window}
    seen = attend(None, zeros, zeros, values, None, **kwargs)[0][0, :, 0] > 0
    softly = attend(None, zeros, zeros, values, None, softcap=2.0, **kwargs)[0][0, :, 0] > 0

    piece = []  # (tree, 0 for its prompt or 1.. for its branches) of each token
    for i, each in enumerate(branches):
        for j, length in enumerate([len(each.prompt), *(len(c) - 1 for c in each.completions)]):
            piece += [(i, j)] * length
    position = packed.position_ids[0].tolist()
    expected = [
        [piece[k] in (piece[q], (piece[q][0], 0)) and 0 <= position[q] - position[k] < (window or t) for k in range(t)]
        for q in range(t)
    ]
    assert seen.tolist() == expected
    assert softly.tolist() == expected
