"""The chunked head against the formula, in value, gradient, precision and memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from prospect.engine import head as logprobs
from prospect.engine.head import Head, token_logp
from prospect.engine.packing import forward

Build = Callable[..., Any]

M, H, V = 13, 7, 29


@pytest.fixture
def inputs() -> Any:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    return draw(M, H), draw(V, H), draw(V), torch.randint(V, (M,), generator=generator)


def plainly(
    hidden: Any, weight: Any, bias: Any, targets: Tensor, scale: float = 1.0, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    z = scale * (hidden @ weight.T + (0 if bias is None else bias))
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    logp = z.log_softmax(-1)
    return logp[torch.arange(len(targets)), targets], logp.exp().square().sum(-1)


@pytest.mark.parametrize("chunk", [1, 4 * V, 1 << 25])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("with_bias", [False, True])
def test_formula_and_gradients(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    chunk: int,
    softcap: float | None,
    scale: float,
    with_bias: bool,
) -> None:
    monkeypatch.setattr(logprobs, "CHUNK", {"cpu": chunk})
    hidden, weight, stored, targets = inputs
    bias = stored if with_bias else None

    def chunked(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        options = {"bias": bias, "scale": scale, "softcap": softcap}
        return token_logp(hidden, weight, targets, compute_dtype=torch.float64, want_sum_p2=True, **options)

    found, expected = chunked(hidden, weight, bias), plainly(hidden, weight, bias, targets, scale, softcap)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
    assert torch.autograd.gradcheck(chunked, (hidden, weight, bias))


def test_only_what_is_asked_for(inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    hidden, weight, _, targets = inputs
    logp, sum_p2 = token_logp(hidden, weight.detach(), targets, compute_dtype=torch.float64)
    assert sum_p2 is None
    assert torch.autograd.gradcheck(
        lambda h: token_logp(h, weight.detach(), targets, compute_dtype=torch.float64)[0], hidden
    )
    logp.sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None
    logp, _ = token_logp(hidden.detach(), weight, targets, compute_dtype=torch.float64)
    logp.sum().backward()
    assert weight.grad is not None


def test_no_rows(inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    hidden, weight, _, targets = inputs
    logp, sum_p2 = token_logp(hidden[:0], weight, targets[:0], compute_dtype=torch.float64, want_sum_p2=True)
    (logp.sum() + sum_p2.sum()).backward()
    assert logp.shape == (0,)
    assert weight.grad.abs().max() == 0


def test_float32_keeps_its_digits_at_extreme_logits() -> None:
    hidden = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    weight = torch.tensor([[300.0], [-300.0]], requires_grad=True)
    logp, _ = token_logp(hidden, weight, torch.tensor([0, 0]), compute_dtype=torch.float32)
    assert logp.tolist() == [0.0, -600.0]
    logp.sum().backward()
    assert hidden.grad.tolist() == [[0.0], [600.0]]


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_bfloat16_products_give_float32_scores_and_stored_gradients(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, stored: torch.dtype
) -> None:
    """Inside and outside of autocast, in backward too, the same; float32 sums the weight gradient over the chunks."""
    monkeypatch.setattr(logprobs, "CHUNK", {"cpu": 2 * V})
    hidden, weight, bias, targets = (x.detach().to(stored) if x.is_floating_point() else x for x in inputs)
    gradients = []
    for autocast in (False, True):
        leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logp, _ = token_logp(leaves[0], leaves[1], targets, bias=leaves[2], compute_dtype=torch.bfloat16)
            if autocast:
                logp.sum().backward()
        assert logp.dtype == torch.float32
        if not autocast:
            logp.sum().backward()
        assert all(leaf.grad.dtype == stored for leaf in leaves)
        gradients.append([leaf.grad for leaf in leaves])
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)
    exact = plainly(hidden.double(), weight.double(), bias.double(), targets)[0].float()
    torch.testing.assert_close(logp.detach(), exact, rtol=0, atol=0.1)


@pytest.mark.parametrize("kept", [4 * 400 * 50 - 1, 4 * 400 * 50])
def test_logits_are_never_held_for_all_tokens(monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    """But for as many of their derivatives as may be kept."""
    monkeypatch.setattr(logprobs, "CHUNK", {"cpu": 50 * 10})
    monkeypatch.setattr(logprobs, "IN_CACHE", {"cpu": 50 * 10})
    monkeypatch.setattr(logprobs, "KEPT", {"cpu": kept})
    made = []
    original = logprobs._Logits._log_probs

    def watched(self: Any, raw: Any) -> Any:
        made.append(raw.numel())
        return original(self, raw)

    monkeypatch.setattr(logprobs._Logits, "_log_probs", watched)
    hidden, weight = torch.randn(400, 4, requires_grad=True), torch.randn(50, 4, requires_grad=True)
    logp, _ = token_logp(hidden, weight, torch.zeros(400, dtype=torch.long), compute_dtype=torch.float32)
    saved = logp.grad_fn.saved_tensors
    logp.sum().backward()
    assert max(made) == 500
    assert len(made) == (80 if kept < 4 * 400 * 50 else 40)  # forward, and backward
    held = sum(t.numel() for t in saved if t is not None) - hidden.numel() - weight.numel() - 400
    assert held == (0 if kept < 4 * 400 * 50 else 400 * 50)


@pytest.mark.parametrize("short", [0, 1])
def test_the_bound_of_what_is_kept(monkeypatch: pytest.MonkeyPatch, short: int) -> None:
    monkeypatch.setattr(logprobs, "KEPT", {"cpu": 4 * 10 * 50 - short})
    hidden, weight = torch.randn(10, 4, requires_grad=True), torch.randn(50, 4)
    targets = torch.zeros(10, dtype=torch.long)
    logp, _ = token_logp(hidden, weight, targets, compute_dtype=torch.float32, want_sum_p2=True)
    *_, kept = logp.grad_fn.saved_tensors
    assert kept.shape == (0 if short else 1, 10, 50)


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket is torch.ops.aten.mm
        return func(*args, **(kwargs or {}))


def test_sums_of_squares_that_only_weigh_cost_backward_nothing() -> None:
    """As in WPO: as many products as without them. A gradient through them is right all the same, and pays."""
    hidden, weight = torch.randn(10, 4, requires_grad=True), torch.randn(50, 4, requires_grad=True)
    targets = torch.zeros(10, dtype=torch.long)
    counts = []
    for through in (None, False, True):
        wants = {"compute_dtype": torch.float32, "want_sum_p2": through is not None}
        with Products() as products:
            logp, sum_p2 = token_logp(hidden, weight, targets, **wants)
            weights = 1.0 if sum_p2 is None else sum_p2 if through else sum_p2.detach()
            (logp * weights).sum().backward()
        counts.append(products.count)
    assert counts == [3, 3, 6]


class Wrapped(nn.Module):
    """A head that is no plain Linear, like one with an adapter."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.inner = nn.Linear(H, V, dtype=weight.dtype)
        self.inner.weight.data, self.inner.bias.data = weight.detach().clone(), bias.detach().clone()

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


@pytest.mark.parametrize("chunk", [3 * V, 1 << 25])
def test_any_other_head_runs_in_chunks_through_its_module(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(logprobs, "CHUNK", {"cpu": chunk})
    hidden, weight, bias, targets = inputs
    wrapped = Wrapped(weight, bias)
    head = Head(wrapped, V, scale=0.7, softcap=2.0)
    found = head.logp(hidden, targets, compute_dtype=torch.float64, want_sum_p2=True)
    expected = plainly(hidden, weight, bias, targets, 0.7, 2.0)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
    direction = torch.arange(M).double().sin()
    (found[0] @ direction + found[1].sum()).backward()
    hidden_grad, hidden.grad = hidden.grad, None
    (expected[0] @ direction + expected[1].sum()).backward()
    torch.testing.assert_close(hidden_grad, hidden.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(wrapped.inner.weight.grad, weight.grad, rtol=0, atol=1e-12)
    assert head.logp(hidden, targets, compute_dtype=torch.float64, want_sum_p2=False)[1] is None


def test_tied_embeddings_get_both_gradients(tiny: Build, trees: Build) -> None:
    policy = tiny("llama", "fp64", tie_word_embeddings=True)
    untied = tiny("llama", "fp64")
    assert policy.head.module.weight is policy.base.get_input_embeddings().weight
    untied.base.load_state_dict(policy.base.state_dict())
    for each in (policy, untied):
        forward(each, trees([(3, [4, 2])])).token_logp.sum().backward()
    parts = untied.base.get_input_embeddings().weight.grad + untied.head.module.weight.grad
    torch.testing.assert_close(policy.head.module.weight.grad, parts, rtol=0, atol=1e-12)
