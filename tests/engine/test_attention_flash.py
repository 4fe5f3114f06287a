"""The path of the flash kernel, run on the CPU with a slow stand-in that has its documented semantics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen as kernels

from prospect.engine import attention, packing
from prospect.engine.attention import attend, computed_in
from prospect.engine.packing import forward, forward_padded, forward_tree, pack
from tests.helpers.architectures import SHAPES, plain_varlen
from tests.helpers.needs import needs_gpu

Build = Callable[..., Any]


def told_varlen(query: Tensor, key: Tensor, *others: Any, enable_gqa: bool = False, **options: Any) -> Tensor:
    """The same in later versions, which refuse shared key heads unless told of them."""
    assert enable_gqa or query.shape[1] == key.shape[1]
    return plain_varlen(query, key, *others, **options)


@pytest.fixture(params=[plain_varlen, told_varlen])
def flash(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a GPU: every state suits, and the kernel is a stand-in."""
    monkeypatch.setattr(kernels, "varlen_attn", request.param)
    monkeypatch.setattr(attention, "suits", lambda query, value, dtype, softcap: softcap is None)
    attention._asks_for_sharing.cache_clear()
    yield
    attention._asks_for_sharing.cache_clear()


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("shapes", [SHAPES, [(3, [4]), (1, [1]), (6, [1])], [(2, [1, 1, 1])]])
def test_values_and_gradients_are_those_of_the_blocks(
    trees: Build, flash: None, monkeypatch: pytest.MonkeyPatch, shapes: Any, heads: int, window: int | None
) -> None:
    packed = pack(trees(shapes))
    torch.manual_seed(0)
    sizes = (4, heads, heads)
    states = [torch.randn(1, h, packed.tokens, 8, dtype=torch.float64, requires_grad=True) for h in sizes]
    options: Any = {"segments": packed.segments, "sliding_window": window, "scaling": 0.3}
    found = []
    for on in (True, False):
        monkeypatch.setattr(attention, "suits", lambda *_, on=on: on)
        output = attend(torch.nn.Module(), states[0], states[1], states[2], None, **options)[0]
        pull = torch.sin(torch.arange(output.numel())).view_as(output).double()
        found.append([output, *torch.autograd.grad(output, states, pull)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_what_the_kernel_is_given(trees: Build) -> None:
    """Two branches of one prompt: the second brings the prompt along as keys; one branch each: nothing is gathered."""
    layout = pack(trees([(3, [2, 3])])).segments.varlen
    assert layout.query_ends.tolist() == [0, 4, 6] and layout.key_ends.tolist() == [0, 4, 9]
    assert layout.keys is not None and layout.keys.tolist() == [0, 1, 2, 3, 0, 1, 2, 4, 5]
    assert (layout.most_queries, layout.most_keys, layout.keys.dtype) == (4, 5, torch.int32)
    layout = pack(trees([(3, [2]), (1, [1]), (2, [4])])).segments.varlen
    assert layout.keys is None and layout.query_ends.tolist() == layout.key_ends.tolist() == [0, 4, 5, 10]


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "gemma2", "gemma3", "gpt2"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_whole_models_equal_the_padded_oracle(
    tiny: Build, trees: Build, flash: None, name: str, checkpointed: bool
) -> None:
    policy, branches = tiny(name, "fp64"), trees(SHAPES)
    assert policy.path == "tree"
    found = []
    for run in (forward_tree, forward_padded):
        policy.model.zero_grad()
        policy.checkpoint_activations(checkpointed)
        logp = run(policy, branches).token_logp
        (logp * torch.sin(torch.arange(len(logp)))).sum().backward()
        found.append([logp, *(p.grad.clone() for _, p in policy.trainable())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def state(size: int = 64, device: str = "cuda") -> Any:
    return SimpleNamespace(shape=(1, 4, 7, size), device=torch.device(device))


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9), (9, 0)])
def test_who_is_suited(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(attention, "_capability", lambda device: capability)
    new = capability >= (8, 0)
    bf16 = torch.bfloat16

    def suits(query: Any, value: Any, dtype: torch.dtype = bf16, softcap: float | None = None) -> bool:
        return attention.suits(query, value, dtype, softcap)

    assert suits(state(), state()) == new
    assert suits(state(), state(), torch.float16) == new
    assert suits(state(256), state(256)) == (new and capability != (8, 9))
    assert not suits(state(), state(), bf16, 30.0)
    assert not suits(state(), state(), torch.float32)
    for query, value in [
        (state(device="cpu"), state()),
        (state(60), state(60)),
        (state(264), state(264)),
        (state(), state(128)),
    ]:
        assert not suits(query, value)


def test_inside_autocast_states_are_narrowed(trees: Build, flash: None) -> None:
    """Norms on queries and keys widen them; SDPA would narrow them by itself, the flash kernel refuses."""
    packed = pack(trees(SHAPES))
    query = torch.randn(1, 4, packed.tokens, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert computed_in(query) == torch.bfloat16
        output, _ = attend(torch.nn.Module(), query, query, query.bfloat16(), None, segments=packed.segments)
        assert output.dtype == torch.bfloat16
    assert computed_in(query) == torch.float32


def test_everything_moves_in_one_copy(monkeypatch: pytest.MonkeyPatch, trees: Build) -> None:
    """As on CUDA, with pinning left out: the same packed in one copy, and one more for the kernel's layout."""
    plain = pack(trees(SHAPES))
    moved: list[Tensor] = []
    monkeypatch.setattr(packing, "_pins", lambda tensor, device: True)
    monkeypatch.setattr(packing, "_pinned", lambda tensor: moved.append(tensor) or tensor)
    packed = pack(trees(SHAPES))
    assert len(moved) == 1
    for name in ("input_ids", "position_ids", "predict", "targets"):
        assert torch.equal(getattr(packed, name), getattr(plain, name))
    layout = packed.segments.varlen
    assert len(moved) == 2 and layout.keys is not None and torch.equal(layout.keys, plain.segments.varlen.keys)
    assert packed.segments.varlen is layout


@needs_gpu
@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "gemma3"])
def test_on_a_gpu_in_bf16(tiny: Build, trees: Build, name: str) -> None:
    """The real kernel, forward and backward, near the padded float32 model; taken, and without a wait of the host."""
    policy, branches = tiny(name, "bf16", device="cuda", head_dim=16), trees(SHAPES)
    exact = tiny(name, "fp32", device="cuda", head_dim=16)
    assert policy.path == "tree", policy.path_reason
    forward(policy, branches).token_logp.sum().backward()  # what is built once
    policy.model.zero_grad()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        output = forward(policy, branches)
        output.token_logp.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = forward_padded(exact, branches)
    expected.token_logp.sum().backward()
    assert (output.token_logp - expected.token_logp).abs().mean() < 0.05
    for (_, a), (_, b) in zip(policy.trainable(), exact.trainable(), strict=True):
        assert a.grad is not None and b.grad is not None
        assert float((a.grad - b.grad).norm() / b.grad.norm()) < 0.1
