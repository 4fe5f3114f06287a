"""Conditional SFT: every answer stands behind a token that says how it was judged; later one asks for good ones.

The two tokens are added to the tokenizer and to the model, end every prompt in training, and the good one is written
into the chat template, so that whoever chats with the saved model asks for good answers. They are part of the prompt:
nothing is trained to predict them. (The HALOs repository has them begin the answer, where they are predicted too.)
Source: arXiv 2302.08582.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch

from prospect.data.dataset import Dataset, Tree
from prospect.engine.policy import Policy
from prospect.errors import ConfigError
from prospect.feedback.records import Record

GOOD, BAD = "<|good|>", "<|bad|>"


def prepare(policy: Policy, training: Dataset, held: Dataset | None) -> tuple[Dataset, Dataset | None]:
    """Teach tokenizer, template and model the two tokens, and put them at the end of the prompts: in training by each
    answer's thumb, in held-out rows the good one. A model that knows them goes on with what it has learnt. Raises
    ConfigError with LoRA, which does not train new tokens."""
    if not policy.trainable() or any("lora_" in name for name, _ in policy.trainable()):
        raise ConfigError("csft trains the embeddings of two new tokens, which an adapter has not: leave out --lora")
    tokenizer = policy.tokenizer
    assert tokenizer is not None, "rows were tokenised"
    new = [name for name in (GOOD, BAD) if name not in tokenizer.get_vocab()]
    if new:
        tokenizer.add_tokens(new, special_tokens=True)
        _grow(policy, cast(list[int], tokenizer.convert_tokens_to_ids(new)))
    good, bad = (cast(int, tokenizer.convert_tokens_to_ids(name)) for name in (GOOD, BAD))
    if isinstance(tokenizer.chat_template, str) and GOOD not in tokenizer.chat_template:
        tokenizer.chat_template += "{% if add_generation_prompt %}" + GOOD + "{% endif %}"
    return _marked(training, good, bad), None if held is None else _marked(held, good, good)


def _grow(policy: Policy, new: list[int]) -> None:
    """Make room for the new tokens, whose embeddings start as the mean of the others."""
    base: Any = policy.base
    if max(new) >= base.get_input_embeddings().weight.shape[0]:
        base.resize_token_embeddings(max(new) + 1, mean_resizing=False)
    with torch.no_grad():
        for table in (base.get_input_embeddings(), base.get_output_embeddings()):
            table.weight[new] = table.weight[: min(new)].mean(0)
    policy.adopt(policy.model)


def _marked(dataset: Dataset, good: int, bad: int) -> Dataset:
    """The dataset with each tree once per token that its rows want, those for good answers first. A control token that
    the template has put at a prompt's end gives way."""
    trees: list[Tree] = []
    records: list[Record] = []
    place: dict[tuple[int, int], int] = {}
    tokens = [good if row.desirable else bad for row in dataset.examples]
    for is_bad, k in sorted({(token != good, row.tree) for token, row in zip(tokens, dataset.examples, strict=True)}):
        token = bad if is_bad else good
        place[k, token] = len(trees)
        prompt = dataset.trees[k].prompt
        prompt = prompt[:-1] if len(prompt) and int(prompt[-1]) in (good, bad) else prompt
        trees.append(replace(dataset.trees[k], prompt=np.append(prompt, np.int32(token))))
        records.append(dataset.records[k])
    rows = (replace(row, tree=place[row.tree, token]) for row, token in zip(dataset.examples, tokens, strict=True))
    return replace(dataset, records=tuple(records), trees=tuple(trees), examples=tuple(rows))
