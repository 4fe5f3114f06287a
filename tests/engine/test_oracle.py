"""The tree path equals one sequence at a time, on every architecture that it claims to run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from prospect.engine import attention
from prospect.engine.packing import Branches, forward, forward_padded, forward_tree
from prospect.engine.policy import Policy
from tests.helpers.architectures import ON_TREES, PADDED, SHAPES

Build = Callable[..., Any]


def oracle(policy: Policy, branches: list[Branches], **wants: Any) -> Tensor:
    """One row at a time, the model's own attention and its own logits."""
    slow = replace(policy, path="padded", chunked_head=False)
    return torch.cat(
        [
            forward(slow, [replace(tree, completions=(completion,))], **wants).token_logp
            for tree in branches
            for completion in tree.completions
        ]
    )


@pytest.mark.parametrize("name", ON_TREES)
@pytest.mark.parametrize("seed", [0, 1])
def test_float32(tiny: Build, trees: Build, name: str, seed: int) -> None:
    policy = tiny(name, seed=seed)
    assert (policy.path, policy.path_reason, policy.chunked_head) == ("tree", "", True)
    branches = trees(SHAPES, seed)
    with torch.no_grad():
        expected, found = oracle(policy, branches), forward(policy, branches)
    off = (found.token_logp - expected).abs().max().item()
    print(f"{name}: max difference {off:.1e} nats")
    assert found.token_logp.dtype == torch.float32
    assert off <= 3e-6


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("name", ON_TREES)
def test_gradients_of_every_parameter_float64(tiny: Build, trees: Build, name: str, checkpointed: bool) -> None:
    policy, branches = tiny(name, "fp64"), trees(SHAPES)
    slow = replace(policy, path="padded", chunked_head=False)
    direction = torch.randn(sum(map(len, branches[0].completions)), generator=torch.Generator().manual_seed(1))
    gradients = []
    for which in (slow, policy):
        which.model.zero_grad()
        which.checkpoint_activations(checkpointed and which is policy)
        logp = forward(which, branches).token_logp
        assert logp.dtype == torch.float64
        weights = torch.sin(torch.arange(len(logp)) + direction[0]).double()
        (logp * weights).sum().backward()
        gradients.append({n: p.grad.clone() for n, p in which.trainable()})
    policy.checkpoint_activations(False)
    for parameter, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][parameter], expected, rtol=1e-10, atol=1e-10, msg=parameter)


@pytest.mark.parametrize("name", PADDED)
def test_models_that_cannot_run_on_trees_are_right_all_the_same(tiny: Build, trees: Build, name: str) -> None:
    policy, branches = tiny(name), trees(SHAPES)
    assert policy.path == "padded"
    assert "nats" in policy.path_reason
    with torch.no_grad():
        wrong = forward_tree(policy, branches).token_logp
        expected = oracle(policy, branches)
        found = forward(policy, branches).token_logp
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-6)
    assert (wrong - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "mixtral"])
def test_order_and_company_do_not_matter(tiny: Build, trees: Build, name: str) -> None:
    policy, branches = tiny(name, "fp64"), trees(SHAPES)
    with torch.no_grad():
        together = forward(policy, branches)
        alone = torch.cat([forward(policy, [tree]).token_logp for tree in branches])
        backwards = forward(policy, branches[::-1])
    torch.testing.assert_close(alone, together.token_logp, rtol=0, atol=1e-12)
    sizes = [sum(map(len, tree.completions)) for tree in branches[::-1]]
    restored = torch.cat(backwards.token_logp.split(sizes)[::-1])
    torch.testing.assert_close(restored, together.token_logp, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_how_long_blocks_are_does_not_matter(
    tiny: Build, trees: Build, small_blocks: Callable[[], None], name: str
) -> None:
    policy = tiny(name, "fp64")
    branches = trees([*SHAPES, (40, [30, 2]), (3, [100])])
    parameters = [p for _, p in policy.trainable()]
    results = []
    for change in (None, small_blocks):
        if change is not None:
            change()
        logp = forward(policy, branches).token_logp
        grads = torch.autograd.grad(logp.sin().sum(), parameters)
        results.append((logp.detach(), torch.cat([g.to_dense().flatten() for g in grads])))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=0, atol=1e-12)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-10, atol=1e-10)


def test_sum_of_squared_probabilities(tiny: Build, trees: Build) -> None:
    policy, branches = tiny("gemma2", "fp64"), trees(SHAPES)
    slow = replace(policy, path="padded", chunked_head=False)
    found, expected = (forward(which, branches, want_sum_p2=True) for which in (policy, slow))
    torch.testing.assert_close(found.token_sum_p2, expected.token_sum_p2, rtol=0, atol=1e-12)
    gradients = []
    for output in (found, expected):
        policy.model.zero_grad()
        (output.token_sum_p2.sum() + output.token_logp.sin().sum()).backward()
        gradients.append(torch.cat([p.grad.flatten() for _, p in policy.trainable()]))
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)
    assert forward(policy, branches).token_sum_p2 is None


def test_offsets_bound_the_completions(tiny: Build, trees: Build) -> None:
    output = forward(tiny("llama"), trees([(3, [2, 5]), (4, [1])]))
    assert output.offsets.tolist() == [0, 2, 7, 8]
    assert output.token_logp.shape == (8,) and output.token_logp.requires_grad


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_bf16_autocast_is_close_and_leaves_the_weights_alone(tiny: Build, trees: Build, name: str) -> None:
    policy, branches = tiny(name, "bf16"), trees(SHAPES)
    assert policy.path == "tree"
    found = forward(policy, branches)
    found.token_logp.sum().backward()
    expected = forward(replace(policy, precision="fp32"), branches)
    assert found.token_logp.dtype == torch.float32
    difference = (found.token_logp - expected.token_logp).abs()
    assert 0 < difference.mean() < 0.05
    assert all(p.dtype == p.grad.dtype == torch.float32 for _, p in policy.trainable())


def test_native_attention_comes_back(tiny: Build, trees: Build) -> None:
    policy = tiny("llama")
    config = policy.base.config
    native = config._attn_implementation
    with policy.tree_attention(), policy.tree_attention():
        assert config._attn_implementation == attention.NAME
    with pytest.raises(AssertionError), policy.tree_attention():
        raise AssertionError
    assert config._attn_implementation == native != attention.NAME
    padded = forward_padded(policy, trees(SHAPES))
    assert padded.token_logp.isfinite().all()


def test_checkpointing_keeps_layers_out_of_training_between_passes(tiny: Build, trees: Build) -> None:
    policy, calls = tiny("llama", attention_dropout=0.5), []
    policy.checkpoint_activations()
    layer = policy.decoder.layers[0]
    layer.input_layernorm.register_forward_hook(lambda module, *_: calls.append(module.training))
    forward(policy, trees(SHAPES)).token_logp.sum().backward()
    assert calls == [False, False]  # computed in forward and again in backward, without dropout either time
    assert not layer.training
    with torch.no_grad():
        forward(policy, trees(SHAPES))
    assert calls == [False] * 3
