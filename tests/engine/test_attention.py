"""Plain attention against PyTorch's own: values and gradients, masks, and when it is taken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from prospect.engine import attention, plain
from prospect.engine.plain import plain_attention


def states(dtype: torch.dtype, queries: int = 7, keys: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    sizes = (queries, keys, keys)
    q, k, v = (torch.randn(2, 3, n, 8, dtype=dtype, requires_grad=True) for n in sizes)
    return q, k, v


def lower_right(queries: int, keys: int) -> Tensor:
    """Causal, the last query seeing every key."""
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


@pytest.mark.parametrize("block", [1, 3, 128])
@pytest.mark.parametrize("causal", [False, True])
def test_values_and_gradients_in_float64(monkeypatch: pytest.MonkeyPatch, block: int, causal: bool) -> None:
    """Under any mask, and under the causal one that goes without saying."""
    monkeypatch.setattr(plain, "BLOCK", block)
    q, k, v = states(torch.float64, 9 if causal else 7)
    told = lower_right(len(q[0, 0]), 9)
    mask = None if causal else torch.stack([told, torch.ones_like(told)])[:, None]
    mine = plain_attention(q, k, v, mask, 0.3)
    theirs = scaled_dot_product_attention(q, k, v, attn_mask=told if mask is None else mask, scale=0.3)
    assert torch.allclose(mine, theirs, atol=1e-12)
    pull = torch.randn_like(mine)
    for a, b in zip(
        torch.autograd.grad(mine, (q, k, v), pull), torch.autograd.grad(theirs, (q, k, v), pull), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-12)
    assert torch.autograd.gradcheck(lambda *x: plain_attention(*x, mask, 0.3), (q, k, v))


@pytest.mark.parametrize("keys", [3, 40])
def test_in_bfloat16_no_worse_than_the_fused_kernel(keys: int) -> None:
    """Both against float64, in values and gradients; inside autocast too, which would round the scores."""
    q, k, v = states(torch.bfloat16, keys, keys)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    wanted = scaled_dot_product_attention(*exact, is_causal=True)
    pull = torch.randn_like(wanted)
    truth = [wanted, *torch.autograd.grad(wanted, exact, pull)]

    def error(output: Tensor) -> list[float]:
        found = [output, *torch.autograd.grad(output, (q, k, v), pull.bfloat16())]
        return [float((a.detach().double() - b.detach()).norm() / b.norm()) for a, b in zip(found, truth, strict=True)]

    with torch.autocast("cpu", torch.bfloat16):
        mine = plain_attention(q, k, v, None, 8**-0.5)
        theirs = scaled_dot_product_attention(q, k, v, is_causal=True)
    assert all(a <= 1.5 * b + 1e-3 for a, b in zip(error(mine), error(theirs), strict=True))


def test_it_is_taken_up_to_where_it_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = states(torch.float32, 5, 5)
    mine = attention._attention(q, k, v, None, None, None)
    monkeypatch.setattr(plain, "PLAIN_KEYS", 4)
    fused = attention._attention(q, k, v, None, None, None)
    assert torch.allclose(mine, fused, atol=1e-6)
    assert "Plain" in mine.grad_fn.name() and "Plain" not in fused.grad_fn.name()
