"""The last layer computes what is wanted of it, and a layer that only looks the part is left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from prospect.engine.forward import forward, forward_padded
from prospect.engine.lora import attach_lora, parse_lora
from prospect.engine.packing import Branches
from prospect.engine.policy import Policy

Tiny = Callable[..., Policy]
Trees = Callable[..., list[Branches]]


@pytest.mark.parametrize("name", ["llama", "qwen3", "smollm3", "mixtral", "mistral"])
def test_the_parts_behind_attention_see_the_predicting_tokens(tiny: Tiny, trees: Trees, name: str) -> None:
    """Prompts of 9 and 7, answers of 2, 3 and 4 tokens: 9 of 22 tokens. Equal to the padded oracle, gradients too."""
    policy, some = tiny(name, precision="fp64"), trees([(9, [2, 3]), (7, [4])])
    assert policy.short_last and policy.path == "tree"
    last, seen = policy.decoder.layers[-1], []
    for part in (last.mlp, last.self_attn.o_proj):
        part.register_forward_hook(lambda _, args, out: seen.append((args[0].shape[1], out.shape[1])))
    first = policy.decoder.layers[0].mlp.register_forward_hook(lambda _, args, out: seen.append(out.shape[1]))
    short = forward(policy, some).token_logp
    assert seen == [22, (9, 9), (9, 9)]
    first.remove()
    whole = forward_padded(policy, some).token_logp
    torch.testing.assert_close(short, whole, rtol=1e-10, atol=1e-10)
    parameters = [p for _, p in policy.trainable()]
    ours, theirs = (
        torch.autograd.grad((logp * torch.arange(9.0)).sum(), parameters, allow_unused=True) for logp in (short, whole)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a.to_dense(), b.to_dense(), rtol=1e-9, atol=1e-10)


def test_a_layer_that_computes_something_else_is_found(tiny: Tiny) -> None:
    """Granite has the same parts and scales what it adds: no reason to give up trees."""
    policy = tiny("granite", residual_multiplier=0.3)
    assert {name for name, _ in policy.decoder.layers[-1].named_children()} >= {"mlp", "self_attn"}
    assert (policy.path, policy.short_last, policy.path_reason) == ("tree", False, "")
    assert not tiny("gemma3").short_last  # four norms


def test_a_wrong_path_stays_wrong_without_it(tiny: Tiny) -> None:
    """What is wrong with trees themselves is still found, and said."""
    policy = tiny("gpt_oss")
    assert policy.path == "padded" and "packed trees are" in policy.path_reason


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_is_recomputed_as_any_other_layer(tiny: Tiny, trees: Trees, checkpointing: bool) -> None:
    policy, some = tiny("llama"), trees([(9, [2, 3]), (7, [4])])
    policy.checkpoint_activations(checkpointing)
    seen: list[int] = []
    for k, layer in enumerate(policy.decoder.layers):
        layer.input_layernorm.register_forward_hook(lambda *_, k=k: seen.append(k))
    forward(policy, some).token_logp.sum().backward()
    assert seen == ([0, 1, 1, 0] if checkpointing else [0, 1])


def test_more_answers_than_tokens_run_whole(tiny: Tiny, trees: Trees) -> None:
    """A prompt of 2 with five one-token answers: 2 tokens computed, of which one predicts five."""
    policy, some = tiny("llama", precision="fp64"), trees([(2, [1, 1, 1, 1, 1])])
    seen: list[int] = []
    policy.decoder.layers[-1].mlp.register_forward_hook(lambda _, args, out: seen.append(out.shape[1]))
    found = forward(policy, some).token_logp
    assert seen == [2]
    torch.testing.assert_close(found, forward_padded(policy, some).token_logp, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_with_an_adapter_and_recomputed_layers(tiny: Tiny, trees: Trees, checkpointing: bool) -> None:
    policy, some = tiny("llama", precision="fp64"), trees([(9, [2, 3]), (7, [4])])
    policy.model.requires_grad_(False)
    attach_lora(policy, parse_lora("r=2"), seed=0)
    for _, p in policy.trainable():
        torch.nn.init.normal_(p, std=0.1)
    policy.checkpoint_activations(checkpointing)
    assert policy.short_last
    found: list[Any] = []
    for policy.short_last in (True, False):
        logp = forward(policy, some).token_logp
        found.append((logp, *torch.autograd.grad(logp.sum(), [p for _, p in policy.trainable()])))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
