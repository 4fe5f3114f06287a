"""Layers that keep less for backward: the same numbers and gradients as the model's own."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from prospect.engine.layers import lighten
from prospect.engine.packing import Branches, forward, pack
from prospect.engine.policy import Policy


def gradients(module: nn.Module, x: Tensor, pull: Tensor) -> list[Tensor]:
    """Output, and gradients by the input and every parameter."""
    x = x.clone().requires_grad_()
    out = module(x)
    return [out, *torch.autograd.grad(out, [x, *module.parameters()], pull.to(out.dtype))]


def norm() -> nn.Module:
    found = LlamaRMSNorm(16, eps=1e-5)
    nn.init.normal_(found.weight)
    return found


def mlp() -> nn.Module:
    return LlamaMLP(LlamaConfig(hidden_size=16, intermediate_size=24, hidden_act="silu", num_attention_heads=2))


@pytest.mark.parametrize("make", [norm, mlp])
def test_values_and_gradients_are_the_layers_own(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    module, x, pull = make(), torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    own = gradients(module, x, pull)
    assert lighten(module) == 1
    for ours, theirs in zip(gradients(module, x, pull), own, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [norm, mlp])
def test_gradients_by_finite_differences(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    module = make().double()
    lighten(module)
    x = torch.randn(1, 3, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (x,))


@pytest.mark.parametrize(("make", "width"), [(norm, 16), (mlp, 2 * 24)])
def test_less_is_kept(make: Callable[[], nn.Module], width: int) -> None:
    """A norm's quotient, or the activated gate and the product: so many numbers for each of 50 tokens."""

    def kept(module: nn.Module) -> int:
        sizes: dict[int, int] = {}

        def note(t: Tensor) -> Tensor:
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        x = torch.randn(1, 50, 16, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            out = module(x)
        assert out.grad_fn is not None
        return sum(sizes.values())

    module = make()
    before = kept(module)
    lighten(module)
    assert before - kept(module) == 4 * 50 * width


def test_bfloat16_inputs_round_where_the_layer_rounds() -> None:
    torch.manual_seed(0)
    for module, dtype in ((norm(), torch.bfloat16), (norm(), torch.float32), (mlp(), torch.float32)):
        x, pull = torch.randn(2, 5, 16).to(dtype), torch.randn(2, 5, 16)
        with torch.autocast("cpu", torch.bfloat16):
            own = gradients(module, x, pull)
            assert lighten(module) == 1
            ours = gradients(module, x, pull)
        assert [a.dtype for a in ours] == [b.dtype for b in own]
        for a, b in zip(ours, own, strict=True):
            torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)


def test_a_layer_that_computes_something_else_stays() -> None:
    gemma = GemmaRMSNorm(16)  # multiplies by 1 + weight
    nn.init.normal_(gemma.weight)
    gelu = LlamaMLP(LlamaConfig(hidden_size=16, intermediate_size=24, hidden_act="gelu", num_attention_heads=2))
    olmo = Olmo2RMSNorm(16)  # rounds once, at the end
    silent = mlp()
    nn.init.zeros_(silent.down_proj.weight)  # gives nothing to compare
    for module in (gemma, gelu, olmo, silent, Clamped(10.0)):
        assert lighten(module) == 0
        assert "forward" not in vars(module)
    both = nn.ModuleList([Clamped(math.inf), Clamped(10.0)])
    assert lighten(both) == 1
    assert "forward" in vars(both[0]) and "forward" not in vars(both[1])


class Clamped(LlamaMLP):
    """Gated activations with a limit, which models of one class may have layer by layer."""

    def __init__(self, limit: float) -> None:
        super().__init__(LlamaConfig(hidden_size=16, intermediate_size=24, hidden_act="silu", num_attention_heads=2))
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        inner = self.act_fn(self.gate_proj(x).clamp(max=self.limit)) * self.up_proj(x).clamp(-self.limit, self.limit)
        found: Tensor = self.down_proj(inner)
        return found


def test_a_model_survives_copying_and_pickling() -> None:
    module = mlp()
    x = torch.randn(2, 16)
    lighten(module)
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(again(x), module(x))
        nn.init.zeros_(again.down_proj.weight)
        assert not again(x).any() and module(x).any()


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "mixtral", "olmo2", "smollm3", "gpt2"])
def test_whole_models_give_the_same(
    name: str, tiny: Callable[..., Policy], trees: Callable[..., list[Branches]]
) -> None:
    """In float64, against the same model with its own layers, and dense gradients of its embeddings, put back."""
    found = tiny(name, precision="fp64")
    if name in ("llama", "qwen3"):
        assert sum("forward" in vars(module) for module in found.base.modules()) >= 5
    tied = found.base.get_output_embeddings().weight is found.base.get_input_embeddings().weight
    assert found.base.get_input_embeddings().sparse == tied
    some = trees([(5, [4, 7, 2]), (3, [1, 6])])

    def both() -> list[Tensor]:
        logp = forward(found, some).token_logp
        return [logp, *torch.autograd.grad(logp.sum(), [p for _, p in found.trainable()], allow_unused=True)]

    ours = both()
    for module in found.model.modules():
        vars(module).pop("forward", None)
        if isinstance(module, nn.Embedding):
            module.sparse = False
    for a, b in zip(ours, both(), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert not a.is_sparse
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_the_common_input_of_projections_is_cast_once(
    tiny: Callable[..., Policy], trees: Callable[..., list[Branches]]
) -> None:
    """The same log-probs to the bit, gradients up to bfloat16's rounding, and two of three, one of two copies less."""

    def measured(policy: Policy) -> tuple[Tensor, list[Tensor], int]:
        sizes: dict[int, int] = {}

        def note(t: Tensor) -> Tensor:
            if t.shape[-1] == width and t.dtype == torch.bfloat16 and t.numel() == tokens * width:
                sizes[t.untyped_storage().data_ptr()] = t.numel()
            return t

        policy.model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            logp = forward(policy, branches).token_logp
        logp.sum().backward()
        return logp.detach(), [p.grad.clone() for _, p in policy.trainable() if p.grad is not None], len(sizes)

    policy, branches = tiny("llama", "bf16"), trees([(5, [3, 2]), (4, [6])])
    width = policy.base.config.get_text_config().hidden_size
    tokens = pack(branches).tokens
    once = measured(policy)
    for module in policy.base.modules():
        module._forward_pre_hooks.clear()
    each = measured(policy)
    assert torch.equal(once[0], each[0])
    for a, b in zip(once[1], each[1], strict=True):
        assert float((a - b).norm()) <= 0.02 * float(b.norm())
    layers = policy.base.config.get_text_config().num_hidden_layers
    assert each[2] - once[2] == 3 * layers
