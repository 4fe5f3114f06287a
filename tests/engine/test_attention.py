"""Attention in blocks against PyTorch's own and against the definition: values, gradients, precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from prospect.engine import attention
from prospect.engine.attention import TOGETHER, Scoring, attend, attend_blocks, attend_plainly, blocks, computed_in
from prospect.engine.packing import Span, pack
from tests.helpers.needs import needs_gpu

TWO_BRANCHES = (Span(0, 0, 0, 9), Span(0, 5, 9, 4), Span(0, 0, 13, 1), Span(0, 0, 14, 6))
"""A prompt of 5 with branches of 4 and 4 tokens, a row of one token and one of 6: 20 tokens."""


def states(dtype: torch.dtype, tokens: int = 20, shared: int = 1, sizes: tuple[int, int] = (8, 8)) -> list[Tensor]:
    """Query, key and value as models give them: heads in front of tokens, but not so in memory. Values may be longer
    than keys."""
    torch.manual_seed(0)
    shapes = ((4, sizes[0]), (4 // shared, sizes[0]), (4 // shared, sizes[1]))
    return [torch.randn(1, tokens, *s, dtype=dtype).transpose(1, 2).requires_grad_() for s in shapes]


def masked(q: Tensor, k: Tensor, v: Tensor, some: tuple[Span, ...], scoring: Scoring) -> Tensor:
    """The whole row with a mask of who sees whom, operator by operator."""
    tokens = q.shape[2]
    seen = torch.zeros(tokens, tokens, dtype=torch.bool)
    place = torch.zeros(tokens, dtype=torch.int64)
    for span in some:
        own = slice(span.start, span.start + span.length)
        place[own] = span.prompt + torch.arange(span.length)
        seen[own, own] = True
        seen[own, span.prompt_start : span.prompt_start + span.prompt] = True
    back = place[:, None] - place
    seen &= (back >= 0) & (back < (scoring.window or tokens))
    share = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(share, 1).transpose(2, 3) * scoring.scaling
    scores = scores if scoring.softcap is None else scoring.softcap * torch.tanh(scores / scoring.softcap)
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return (weights @ v.repeat_interleave(share, 1)).transpose(1, 2)


@pytest.mark.parametrize("shared", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("softcap", [None, 0.7])
def test_values_and_gradients_in_float64(shared: int, window: int | None, softcap: float | None) -> None:
    scoring = Scoring(torch.float64, 0.3, window, softcap)
    inputs = states(torch.float64, shared=shared, sizes=(8, 5))
    mine, theirs = attend_blocks(*inputs, TWO_BRANCHES, scoring), masked(*inputs, TWO_BRANCHES, scoring)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
    pull = torch.randn_like(mine)
    found, expected = (torch.autograd.grad(output, inputs, pull) for output in (mine, theirs))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("softcap", [None, 0.7])
def test_finite_differences(softcap: float | None) -> None:
    scoring = Scoring(torch.float64, 0.3, None, softcap)
    assert torch.autograd.gradcheck(
        lambda *x: attend_blocks(*x, TWO_BRANCHES, scoring), states(torch.float64, sizes=(4, 4))
    )


@pytest.mark.parametrize("window", [None, 50])
def test_long_segments_go_in_blocks(small_blocks: Callable[[], None], window: int | None) -> None:
    small_blocks()
    some = (Span(0, 0, 0, 101), Span(0, 70, 101, 77), Span(0, 0, 178, 33))
    inputs = states(torch.float64, tokens=211, shared=2)
    found = []
    for way in (attend_blocks, masked):
        output = way(*inputs, some, Scoring(torch.float64, 0.3, window))
        found.append((output.detach(), *torch.autograd.grad(output.sin().sum(), inputs)))
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths that the fused kernel has been asked for."""
    lengths: list[int] = []

    def told(query: Tensor, *others: Tensor, **options: Any) -> Tensor:
        lengths.append(query.shape[2])
        return scaled_dot_product_attention(query, *others, **options)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", told)
    return lengths


@pytest.mark.parametrize("rows", [[40, 12, 12], [12, 40, 12], [12, 12, 40], [40, 41, 12], [40]])
def test_the_longest_take_the_fused_kernel(monkeypatch: pytest.MonkeyPatch, fused: list[int], rows: list[int]) -> None:
    """Wherever they stand, and with a branch of the longest prompt, which is not theirs, at the end of the row."""
    starts = [sum(rows[:n]) for n in range(len(rows))]
    some = [Span(0, 0, start, length) for start, length in zip(starts, rows, strict=True)]
    some.append(Span(starts[rows.index(max(rows))], 30, sum(rows), 42))
    inputs = states(torch.float64, tokens=sum(rows) + 42, shared=2)
    found = []
    for keys in (1024, 40):
        monkeypatch.setattr(attention, "FUSED", keys)
        output = attend_blocks(*inputs, tuple(some), Scoring(torch.float64, 0.3))
        found.append((output.detach(), *torch.autograd.grad(output.sin().sum(), inputs)))
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)
    assert fused == [length for length in rows if length >= 40]


@pytest.mark.parametrize("window", [None, 39, 40])
@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("size", [8, 5])
def test_what_the_fused_kernel_cannot_do_is_not_asked_of_it(
    monkeypatch: pytest.MonkeyPatch, fused: list[int], window: int | None, softcap: float | None, size: int
) -> None:
    monkeypatch.setattr(attention, "FUSED", 40)
    inputs = states(torch.float64, tokens=40, sizes=(8, size))
    some, scoring = (Span(0, 0, 0, 40),), Scoring(torch.float64, 0.3, window, softcap)
    torch.testing.assert_close(
        attend_blocks(*inputs, some, scoring), masked(*inputs, some, scoring), rtol=0, atol=1e-12
    )
    assert fused == ([40] if window != 39 and softcap is None and size == 8 else [])


@pytest.mark.parametrize("longest", [6, 1024])
def test_more_keys_than_queries(monkeypatch: pytest.MonkeyPatch, fused: list[int], longest: int) -> None:
    """As if the first tokens had no queries. A span without a prompt may take the fused kernel."""
    monkeypatch.setattr(attention, "FUSED", longest)
    scoring = Scoring(torch.float64, 0.3)
    inputs = states(torch.float64)
    expected = attend_blocks(*inputs, TWO_BRANCHES, scoring)[:, 9:]
    query, key, value = inputs
    found = attend_blocks(query[:, :, 9:], key, value, TWO_BRANCHES[1:], scoring)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    gradients = (torch.autograd.grad(output.sin().sum(), inputs) for output in (found, expected))
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-13)
    assert fused == ([9, 6, 6] if longest == 6 else [])


@pytest.mark.parametrize("window", [None, 50])
def test_of_one_shape_but_longer_than_a_block(small_blocks: Callable[[], None], window: int | None) -> None:
    small_blocks()
    some = (Span(0, 0, 0, 70), Span(0, 1, 70, 96), Span(0, 62, 166, 65))
    inputs, scoring = states(torch.float64, tokens=231, shared=2), Scoring(torch.float64, 0.3, window)
    found = [way(*inputs, some, scoring) for way in (attend_blocks, masked)]
    gradients = (torch.autograd.grad(output.sin().sum(), inputs) for output in found)
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [None, 1, 3, 9, 40, 100])
def test_blocks_hold_what_their_queries_see_and_no_more(window: int | None) -> None:
    """Behind a row of 7 tokens: a branch longer than a block whose prompt lies there, and a segment of its own."""
    some = (Span(2, 5, 7, 70), Span(0, 0, 77, 33))
    queries = []
    for block in blocks(some, 7, window, torch.device("cpu"), 32, 1):
        places, keys = (
            [place for part in parts if isinstance(part, slice) for place in range(part.start, part.stop)]
            for parts in (block.queries, block.keys)
        )
        queries += places
        assert keys[-len(places) :] == [place + 7 for place in places]
        whole = [*range(2, 7), *range(7, places[-1] + 8)] if places[0] < 70 else list(range(77, places[-1] + 8))
        first = whole.index(places[0] + 7)
        assert keys == whole[max(0, first + 1 - (window or len(whole))) :]
    assert queries == list(range(103))


SIMILAR = [(20, [9, 9, 9, 9]), *[(17, [5])] * 3, (24, [1, 12]), *[(30, [3, 5, 6])] * 2, *[(1, [1])] * 2, (40, [31, 32])]
"""Trees: many segments of equal shapes, some of similar ones, and some alone."""


@pytest.mark.parametrize("window", [None, 4, 30])
@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("shared", [1, 4])
def test_short_segments_go_together(
    trees: Callable[..., Any], shared: int, softcap: float | None, window: int | None
) -> None:
    """Of equal and of unequal shapes, with prompts that many share: nothing is different but the number of blocks."""
    segments = pack(trees(SIMILAR)).segments
    tokens, scoring = sum(span.length for span in segments.spans), Scoring(torch.float64, 0.3, window, softcap)
    inputs, results = states(torch.float64, tokens, shared, sizes=(8, 5)), []
    for output in (attend_blocks(*inputs, segments.spans, scoring), attend_plainly(*inputs, segments, scoring)):
        results.append((output.detach(), *torch.autograd.grad(output.sin().sum(), inputs)))
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)
    apart, few, most = (
        blocks(segments.spans, 0, window, torch.device("cpu"), 192, count) for count in (1, 3, TOGETHER)
    )
    assert [block.segments for block in apart] == [1] * len(segments.spans)
    assert [block.segments for block in most] == [1, 1, 12, 5]  # the first two have more than 64 keys
    assert [block.segments for block in few] == [1, 1, 3, 3, 3, 3, 3, 2]


def test_what_is_not_a_number_stays_in_its_segment_of_those_together() -> None:
    """In values and gradients, though segments are padded beside it."""
    some = (Span(0, 0, 0, 9), Span(0, 5, 9, 4), Span(0, 0, 13, 1), Span(0, 0, 14, 6), Span(0, 0, 20, 9))
    inputs = [x.detach() for x in states(torch.float32, 29)]
    for x in inputs:
        x[:, :, 14] = float("nan")
        x.requires_grad_()
    output = attend_blocks(*inputs, some, Scoring(torch.float32, 0.3))
    gradients = torch.autograd.grad(output, inputs, torch.ones_like(output))
    for found in (output.transpose(1, 2), *gradients):
        assert found[:, :, 14:20].isnan().any() and found[:, :, :14].isfinite().all()
        assert found[:, :, 20:].isfinite().all()


def test_what_is_not_a_number_stays_in_its_segment() -> None:
    inputs = [x.detach() for x in states(torch.float32)]
    for x in inputs:
        x[:, :, 0] = float("nan")
    output = attend_blocks(*inputs, TWO_BRANCHES, Scoring(torch.float32, 0.3))
    assert output[:, :13].isnan().all() and output[:, 13:].isfinite().all()


@pytest.mark.parametrize("peaked", [False, True])
@pytest.mark.parametrize("keys", [3, 40, 300, 500, 1100])
def test_in_bfloat16_no_worse_than_the_fused_kernel(keys: int, peaked: bool) -> None:
    """Both against float64, in values and gradients; inside autocast too, which would round the scores. Also where a
    query looks at few keys, and everyone at the first: then what is left of a derivative is small."""
    inputs = states(torch.bfloat16, keys, shared=2)
    scaling = 2.0 if peaked else 8**-0.5
    with torch.no_grad():
        inputs[1][:, :, 0] *= 4 if peaked else 1
    exact = [x.detach().double().requires_grad_() for x in inputs]
    fused = {"is_causal": True, "scale": scaling, "enable_gqa": True}
    wanted = scaled_dot_product_attention(*exact, **fused)
    pull = torch.randn_like(wanted)
    truth = [wanted, *torch.autograd.grad(wanted, exact, pull)]

    def error(output: Tensor) -> list[float]:
        found = [output, *torch.autograd.grad(output, inputs, pull.bfloat16())]
        return [float((a.double() - b).detach().norm() / b.detach().norm()) for a, b in zip(found, truth, strict=True)]

    with torch.autocast("cpu", torch.bfloat16):
        mine = attend_blocks(*inputs, (Span(0, 0, 0, keys),), Scoring(torch.bfloat16, scaling)).transpose(1, 2)
        theirs = scaled_dot_product_attention(*inputs, **fused)
    assert all(a <= 1.5 * b + 1e-3 for a, b in zip(error(mine), error(theirs), strict=True))


def test_a_query_with_one_key_has_no_gradient() -> None:
    """Not even one of roundings."""
    inputs = states(torch.bfloat16, 60)
    some = (Span(0, 0, 0, 40), Span(0, 0, 40, 20))
    output = attend_blocks(*inputs, some, Scoring(torch.bfloat16, 0.3))
    by_query, *_ = torch.autograd.grad(output, inputs, 100 * torch.randn_like(output))
    assert not by_query[:, :, [0, 40]].any() and by_query[:, :, [1, 41]].all()


def test_states_as_models_give_them(trees: Callable[..., Any]) -> None:
    """Inside autocast a rotation has widened queries and keys, but not values; each gets a gradient of its own kind."""
    packed = pack(trees([(5, [4, 1, 9]), (1, [1]), (200, [230, 7])]))
    inputs = states(torch.float32, packed.tokens, shared=2)
    inputs[2] = inputs[2].detach().bfloat16().requires_grad_()
    rounded = [x.detach().bfloat16().double().requires_grad_() for x in inputs]
    pull = torch.randn(1, packed.tokens, 4, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert computed_in(inputs[0]) == torch.bfloat16
        query, key, value = inputs
        mine, _ = attend(torch.nn.Module(), query, key, value, None, segments=packed.segments)
    query, key, value = rounded
    exact, _ = attend(torch.nn.Module(), query, key, value, None, segments=packed.segments)
    assert mine.dtype == torch.bfloat16
    found = [mine, *torch.autograd.grad(mine, inputs, pull)]
    assert [x.dtype for x in found[1:]] == [x.dtype for x in inputs]
    for a, b in zip(found, [exact, *torch.autograd.grad(exact, rounded, pull.double())], strict=True):
        assert (a.double() - b).norm() <= 0.01 * b.norm()


@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("softcap", [None, 0.7])
def test_the_definition_and_what_computes_it(
    trees: Callable[..., Any], window: int | None, softcap: float | None
) -> None:
    packed = pack(trees([(5, [4, 1, 9]), (1, [1]), (20, [23, 7])]))
    inputs = states(torch.float64, packed.tokens, shared=2, sizes=(8, 5))
    scoring = Scoring(torch.float64, 0.3, window, softcap)
    results = []
    for output in (
        attend_blocks(*inputs, packed.segments.spans, scoring),
        attend_plainly(*inputs, packed.segments, scoring),
    ):
        results.append((output.detach(), *torch.autograd.grad(output.sin().sum(), inputs)))
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)


@needs_gpu
@pytest.mark.parametrize("softcap", [None, 0.7])
def test_on_a_gpu(softcap: float | None) -> None:
    """In float32, where flash does not compute."""
    inputs, scoring = states(torch.float32, shared=2), Scoring(torch.float32, 0.3, 3, softcap)
    results = []
    for device in ("cpu", "cuda"):
        output = attend_blocks(*(x.to(device) for x in inputs), TWO_BRANCHES, scoring)
        results.append((output.detach().cpu(), *torch.autograd.grad(output.sin().sum(), inputs)))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
