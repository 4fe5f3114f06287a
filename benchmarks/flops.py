"""Floating point operations of what is executed: 2 per weight and token forward, 4 backward, the head on completion
tokens only, attention's two products over the keys that each token sees. What is computed again is not counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prospect.engine.forest import Branches
from prospect.schedule import Step
from prospect.train.batch import Micro, matched, mismatched
from prospect.train.job import NO_GRAD_FACTOR, Job


def of_trees(config: Any, body: int, trees: Sequence[Branches], passes: int) -> float:
    """`passes` 1 for forward, 3 with backward; `body` are the parameters beside embeddings and head; transformers'
    `config` tells the rest."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    tokens = targets = keys = 0.0
    for tree in trees:
        p = len(tree.prompt)
        own = [len(completion) for completion in tree.completions]
        tokens += p + sum(own) - len(own)
        targets += sum(own)
        keys += p * p / 2 + sum((c - 1) * (p + c / 2) for c in own)
    head = config.hidden_size * config.vocab_size * targets
    attention = 2 * config.num_attention_heads * size * config.num_hidden_layers * keys
    return 2.0 * passes * (body * tokens + head + attention)


def of_step(job: Job, step: Step) -> float:
    """A step of Prospect: forward and backward of its rows, forward of the partners that z0 is estimated from."""
    config = job.policy.base.config.get_text_config()
    tied = job.policy.base.get_input_embeddings().weight is job.policy.base.get_output_embeddings().weight
    body = job.policy.parameters - (1 if tied else 2) * config.vocab_size * config.hidden_size

    def total(micros: Sequence[Micro], passes: int) -> float:
        return sum(of_trees(config, body, micro.trees, passes) for micro in micros)

    found = total(matched(job.corpus, step.rows, 1, job.token_budget)[0], 3)
    if job.point is not None and job.point.averages == "partners":
        most = NO_GRAD_FACTOR * job.token_budget
        found += total(mismatched(job.corpus, job.schedule.partners, step.rows, 1, most, job.context)[0], 1)
    return found
