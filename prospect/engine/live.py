"""A reference that is no table: earlier weights of the policy itself, for references that move and for questions that
nobody can foresee.

It keeps a copy of what is trained, with LoRA only the adapter, and puts it in place for the length of a forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from prospect.engine.forward import forward
from prospect.engine.packing import Branches
from prospect.engine.policy import Policy
from prospect.engine.precision import COMPUTED_IN

LOGITS = 1 << 25
"""How many of them `token_kl` should hold at once."""


class LiveReference:
    """The policy's weights as they are now, until `follow` or `restore` changes them."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.weights = {name: p.detach().clone() for name, p in policy.trainable()}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it, the policy's model computes with the reference's weights. No graph may cross its border."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, p in self.policy.trainable():
            p.data, self.weights[name] = self.weights[name], p.data

    @torch.no_grad()
    def scores(self, trees: Sequence[Branches], like: Tensor) -> Tensor:
        """Token log-probs (M,) of all completions of the trees, in their order."""
        with self.in_place():
            return forward(self.policy, trees).token_logp.to(like)

    @torch.no_grad()
    def follow(self, mix: float) -> None:
        """reference <- mix * policy + (1 - mix) * reference, weight by weight."""
        for name, p in self.policy.trainable():
            self.weights[name].lerp_(p.detach(), mix)

    @torch.no_grad()
    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Take back weights that were saved."""
        for name, kept in self.weights.items():
            kept.copy_(weights[name])


def token_kl(policy: Policy, reference: LiveReference, trees: Sequence[Branches]) -> tuple[Tensor, Tensor]:
    """KL(pi(.|prefix) || pi_ref(.|prefix)) in nats at every completion token, (M,), and offsets (N+1,).

    Exact over the vocabulary, of which it holds (M x V) numbers a few times over: ask for at most `kl_tokens` at once.
    The gradient flows to the policy.
    """
    dtype = COMPUTED_IN[policy.precision]
    with torch.no_grad(), reference.in_place():
        hidden = forward(policy, trees, want_hidden=True).hidden
        assert hidden is not None
        other = policy.head.logits(hidden, compute_dtype=dtype).log_softmax(-1)
    found = forward(policy, trees, want_hidden=True)
    assert found.hidden is not None
    mine = policy.head.logits(found.hidden, compute_dtype=dtype).log_softmax(-1)
    return (mine.exp() * (mine - other)).sum(-1), found.offsets


def kl_tokens(policy: Policy) -> int:
    """How many tokens `token_kl` should be asked for at once."""
    return max(1, LOGITS // policy.head.vocabulary)
