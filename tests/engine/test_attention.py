"""Plain attention against PyTorch's own: values and gradients, masks, and when it is taken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from prospect.engine import attention
from prospect.engine.attention import Plain


def states(dtype: torch.dtype, queries: int = 7, keys: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    sizes = (queries, keys, keys)
    q, k, v = (torch.randn(2, 3, n, 8, dtype=dtype, requires_grad=True) for n in sizes)
    return q, k, v


def lower_right(queries: int, keys: int) -> Tensor:
    """Causal, the last query seeing every key."""
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


def test_values_and_gradients_in_float64() -> None:
    q, k, v = states(torch.float64)
    mask = lower_right(7, 9)
    mine = Plain.apply(q, k, v, mask, 0.3)
    theirs = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3)
    assert torch.allclose(mine, theirs, atol=1e-12)
    pull = torch.randn_like(mine)
    for a, b in zip(
        torch.autograd.grad(mine, (q, k, v), pull), torch.autograd.grad(theirs, (q, k, v), pull), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-12)
    assert torch.autograd.gradcheck(lambda *x: Plain.apply(*x, mask, 0.3), (q, k, v))


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
        mine = Plain.apply(q, k, v, lower_right(keys, keys), 8**-0.5)
        theirs = scaled_dot_product_attention(q, k, v, is_causal=True)
    assert all(a <= 1.5 * b + 1e-3 for a, b in zip(error(mine), error(theirs), strict=True))


def test_it_is_taken_for_training_in_bfloat16_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = states(torch.bfloat16, 5, 5)
    fused = attention._attention(q.detach(), k.detach(), v.detach(), None, None, None)
    monkeypatch.setattr(attention, "scaled_dot_product_attention", None)
    plain = attention._attention(q, k, v, None, None, None)
    assert torch.allclose(plain, fused, atol=0.02)
    with pytest.raises(TypeError), torch.no_grad():
        attention._attention(q, k, v, None, None, None)
    q, k, v = states(torch.float64, 5, 5)
    with pytest.raises(TypeError):
        attention._attention(q, k, v, None, None, None)
