"""Further completions of prompts that were computed: the same numbers, without the prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import varlen as kernels

from prospect.engine import attention
from prospect.engine.packing import Branches, forward, forward_more, on_trees, pack_more
from tests.helpers.architectures import ON_TREES, SHAPES, plain_varlen

Build = Callable[..., Any]
MORE = [3, 0, 2, 1, 1, 4]
"""How many further completions each tree gets."""


def further(policy: Any, trees: Build) -> tuple[list[Branches], list[tuple[Any, ...]], list[Branches]]:
    """Trees; more completions for them, some of one token and one longer than the windows; and those as trees."""
    branches = trees(SHAPES)
    rng = np.random.default_rng(5)
    lengths = iter([1, 9, 4, 12, 2, 1, 6, 8, 1, 1, 3])
    more = [tuple(rng.integers(101, size=next(lengths), dtype=np.int32) for _ in range(count)) for count in MORE]
    return branches, more, [Branches(t.prompt, c) for t, c in zip(branches, more, strict=True) if c]


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("name", ON_TREES)
def test_equal_to_a_pass_of_their_own(tiny: Build, trees: Build, name: str, checkpointed: bool) -> None:
    """And the first pass keeps its gradient, with activation checkpointing too."""
    policy = tiny(name, "fp64")
    branches, more, alone = further(policy, trees)
    with torch.no_grad():
        expected = forward(policy, alone).token_logp
    gradients = []
    policy.checkpoint_activations(checkpointed)
    for remember in (False, True):
        found = forward(policy, branches, want_prompts=remember)
        if remember:
            assert found.prompts is not None
            other = forward_more(policy, found.prompts, more)
            assert not other.token_logp.requires_grad
            assert (other.token_logp - expected).abs().max() < 1e-12
        grads = torch.autograd.grad(found.token_logp.square().sum(), [p for _, p in policy.trainable()])
        gradients.append(torch.cat([g.flatten() for g in grads]))
    assert (gradients[0] - gradients[1]).norm() <= 1e-12 * gradients[0].norm()


def test_in_the_layout_of_the_flash_kernel(tiny: Build, trees: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is here a plain one."""
    policy = tiny("llama", "fp64")
    branches, more, alone = further(policy, trees)
    with torch.no_grad():
        expected = forward(policy, alone).token_logp
        monkeypatch.setattr(attention, "suits", lambda *_: True)
        monkeypatch.setattr(kernels, "varlen_attn", plain_varlen)
        monkeypatch.setattr(attention, "_asks_for_sharing", lambda: False)
        prompts = forward(policy, branches, want_prompts=True).prompts
        assert prompts is not None
        assert (forward_more(policy, prompts, more).token_logp - expected).abs().max() < 1e-12


def test_only_new_tokens_are_computed(tiny: Build, trees: Build) -> None:
    policy = tiny("llama")
    branches, more, _ = further(policy, trees)
    prompts = forward(policy, branches, want_prompts=True).prompts
    assert prompts is not None
    packed = pack_more(prompts, more)
    assert packed.tokens == sum(len(c) - 1 for some in more for c in some)
    assert packed.position_ids[0, 0] == len(branches[0].prompt)


def test_single_tokens_need_no_pass(tiny: Build, trees: Build) -> None:
    """They follow from the prompts' last states alone."""
    policy = tiny("llama", "fp64")
    branches = trees([(4, [3]), (2, [2, 2])])
    one = [tuple(np.array([token], np.int32) for token in some) for some in ((7, 8), (9,))]
    with torch.no_grad():
        expected = forward(policy, [Branches(t.prompt, c) for t, c in zip(branches, one, strict=True)]).token_logp
        prompts = forward(policy, branches, want_prompts=True).prompts
        assert prompts is not None
        assert (forward_more(policy, prompts, one).token_logp - expected).abs().max() < 1e-12


def test_not_on_the_padded_path(tiny: Build, trees: Build) -> None:
    policy = tiny("llama")
    assert on_trees(policy, trees([(3, [2])]))
    assert not on_trees(replace(policy, path="padded"), trees([(3, [2])]))
    assert not on_trees(replace(policy, checked_length=4), trees([(3, [2])]))
