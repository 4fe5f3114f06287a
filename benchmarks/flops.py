"""Floating point operations of what is executed: 2 per weight and token forward, 4 backward, the head on completion
tokens only, attention's two products over the keys that each token sees. What is computed again is not counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prospect.engine.forest import Branches
from prospect.schedule import Step
from prospect.train import z0
from prospect.train.batch import matched
from prospect.train.job import NO_GRAD_FACTOR, Job


def of_trees(config: Any, body: int, trees: Sequence[Branches], passes: int, prompts: bool = True) -> float:
    """`passes` 1 for forward, 3 with backward; `body` are the parameters beside embeddings and head; transformers'
    `config` tells the rest. Without `prompts` these are remembered and not computed again."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    tokens = targets = keys = 0.0
    for tree in trees:
        p = len(tree.prompt)
        own = [len(completion) for completion in tree.completions]
        tokens += sum(own) - len(own) + (p if prompts else 0)
        targets += sum(own)
        keys += sum((c - 1) * (p + c / 2) for c in own) + (p * p / 2 if prompts else 0)
    head = config.hidden_size * config.vocab_size * targets
    attention = 2 * config.num_attention_heads * size * config.num_hidden_layers * keys
    return 2.0 * passes * (body * tokens + head + attention)


def of_step(job: Job, step: Step) -> float:
    """A step of Prospect on one rank: forward and backward of its rows, forward of what z0 is estimated from."""
    config = job.policy.base.config.get_text_config()
    tied = job.policy.base.get_input_embeddings().weight is job.policy.base.get_output_embeddings().weight
    body = job.policy.parameters - (1 if tied else 2) * config.vocab_size * config.hidden_size
    found = sum(
        of_trees(config, body, micro.trees, 3) for micro in matched(job.corpus, step.rows, 1, job.token_budget)[0]
    )
    if job.point is not None:
        for micro, own in z0._passes(job, step, NO_GRAD_FACTOR * job.token_budget)[0]:
            if own is not micro and micro.rows:  # else it is training's own pass
                found += of_trees(config, body, micro.trees, 1, prompts=own is None)
    return found
