"""Attention in spans against PyTorch's own: values, gradients, precision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from prospect.engine import spans
from prospect.engine.spans import How, Span, attend_spans

TWO_BRANCHES = (Span(0, 0, 0, 9), Span(0, 5, 9, 4), Span(0, 0, 13, 1), Span(0, 0, 14, 6))
"""A prompt of 5 with branches of 4 and 4 tokens, a row of one token and one of 6: 20 tokens."""


def states(dtype: torch.dtype, tokens: int = 20, shared: int = 1, sizes: tuple[int, int] = (8, 8)) -> list[Tensor]:
    """Query, key and value as models give them: heads in front of tokens, but not so in memory. Values may be longer
    than keys."""
    torch.manual_seed(0)
    shapes = ((4, sizes[0]), (4 // shared, sizes[0]), (4 // shared, sizes[1]))
    return [torch.randn(1, tokens, *s, dtype=dtype).transpose(1, 2).requires_grad_() for s in shapes]


def masked(q: Tensor, k: Tensor, v: Tensor, some: tuple[Span, ...], how: How) -> Tensor:
    """The whole row with a mask of who sees whom, operator by operator."""
    tokens = q.shape[2]
    seen = torch.zeros(tokens, tokens, dtype=torch.bool)
    place = torch.zeros(tokens, dtype=torch.int64)
    for span in some:
        place[span.own] = span.prompt + torch.arange(span.length)
        seen[span.own, span.own] = True
        seen[span.own, span.before] = True
    back = place[:, None] - place
    seen &= (back >= 0) & (back < (how.window or tokens))
    share = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(share, 1).transpose(2, 3) * how.scaling
    scores = scores if how.softcap is None else how.softcap * torch.tanh(scores / how.softcap)
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return (weights @ v.repeat_interleave(share, 1)).transpose(1, 2)


@pytest.mark.parametrize("kept", [0, 1024])
@pytest.mark.parametrize("shared", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("softcap", [None, 0.7])
def test_values_and_gradients_in_float64(
    monkeypatch: pytest.MonkeyPatch, kept: int, shared: int, window: int | None, softcap: float | None
) -> None:
    monkeypatch.setattr(spans, "KEPT_KEYS", kept)
    how = How(torch.float64, 0.3, window, softcap)
    inputs = states(torch.float64, shared=shared, sizes=(8, 5))
    mine, theirs = attend_spans(*inputs, TWO_BRANCHES, how), masked(*inputs, TWO_BRANCHES, how)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
    pull = torch.randn_like(mine)
    found, expected = (torch.autograd.grad(output, inputs, pull) for output in (mine, theirs))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("softcap", [None, 0.7])
def test_finite_differences(softcap: float | None) -> None:
    how = How(torch.float64, 0.3, None, softcap)
    assert torch.autograd.gradcheck(lambda *x: attend_spans(*x, TWO_BRANCHES, how), states(torch.float64, sizes=(4, 4)))


@pytest.mark.parametrize("window", [None, 50])
def test_long_segments_go_in_blocks(small_blocks: Callable[[], None], window: int | None) -> None:
    small_blocks()
    some = (Span(0, 0, 0, 101), Span(0, 70, 101, 77), Span(0, 0, 178, 33))
    inputs = states(torch.float64, tokens=211, shared=2)
    found = []
    for attend in (attend_spans, masked):
        output = attend(*inputs, some, How(torch.float64, 0.3, window))
        found.append((output.detach(), *torch.autograd.grad(output.sin().sum(), inputs)))
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)


@pytest.mark.parametrize("where", [0, 1, 2])
def test_the_longest_take_the_fused_kernel(monkeypatch: pytest.MonkeyPatch, where: int) -> None:
    """Wherever they stand, and with branches of their prompts elsewhere in the row."""
    lengths = [12, 12, 12]
    lengths[where] = 40
    starts = [0, lengths[0], lengths[0] + lengths[1]]
    some = [Span(0, 0, start, length) for start, length in zip(starts, lengths, strict=True)]
    some.insert(where + 1, Span(starts[where], 30, 64, 6))
    some = sorted(some, key=lambda span: span.start)
    inputs = states(torch.float64, tokens=70, shared=2)
    calls: list[int] = []
    monkeypatch.setattr(
        spans,
        "scaled_dot_product_attention",
        lambda *x, **how: calls.append(1) or scaled_dot_product_attention(*x, **how),
    )
    found = []
    for keys in (1024, 40):
        monkeypatch.setattr(spans, "FUSED_KEYS", keys)
        output = attend_spans(*inputs, some, How(torch.float64, 0.3))
        found.append((output.detach(), *torch.autograd.grad(output.sin().sum(), inputs)))
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)
    assert len(calls) == 1


def test_prompts_in_another_row() -> None:
    """As if they stood in this one; they get no gradient."""
    how = How(torch.float64, 0.3)
    q, k, v = states(torch.float64)
    expected = attend_spans(q, k, v, TWO_BRANCHES, how)[:, 9:13]
    own = (x.detach()[:, :, 9:13] for x in (q, k, v))
    found = attend_spans(*own, (Span(0, 5, 0, 4),), how, (k.detach(), v.detach()))
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("keys", [3, 40, 300])
def test_in_bfloat16_no_worse_than_the_fused_kernel(keys: int) -> None:
    """Both against float64, in values and gradients; inside autocast too, which would round the scores."""
    inputs = states(torch.bfloat16, keys)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    wanted = scaled_dot_product_attention(*exact, is_causal=True)
    pull = torch.randn_like(wanted)
    truth = [wanted, *torch.autograd.grad(wanted, exact, pull)]

    def error(output: Tensor) -> list[float]:
        found = [output, *torch.autograd.grad(output, inputs, pull.bfloat16())]
        return [float((a.double() - b).detach().norm() / b.detach().norm()) for a, b in zip(found, truth, strict=True)]

    with torch.autocast("cpu", torch.bfloat16):
        mine = attend_spans(*inputs, (Span(0, 0, 0, keys),), How(torch.bfloat16, 8**-0.5)).transpose(1, 2)
        theirs = scaled_dot_product_attention(*inputs, is_causal=True)
    assert all(a <= 1.5 * b + 1e-3 for a, b in zip(error(mine), error(theirs), strict=True))
