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

from prospect.corpus import Corpus
from prospect.engine.models import Policy
from prospect.errors import ConfigError
from prospect.feedback.records import Record
from prospect.schedule import Row
from prospect.tokens import Tree

GOOD, BAD = "<|good|>", "<|bad|>"


def prepare(policy: Policy, training: Corpus, held: Corpus | None) -> tuple[Corpus, Corpus | None]:
    """Teach tokenizer, template and model the two tokens, and put them at the end of the prompts: in training by each
    answer's thumb, in held-out rows the good one. Raises ConfigError with LoRA, which does not train new tokens."""
    if not policy.trainable() or any("lora_" in name for name, _ in policy.trainable()):
        raise ConfigError("csft trains the embeddings of two new tokens, which an adapter has not: leave out --lora")
    tokenizer = policy.tokenizer
    assert tokenizer is not None, "rows were tokenised"
    tokenizer.add_tokens([GOOD, BAD], special_tokens=True)
    _grow(policy, len(tokenizer))
    good, bad = (cast(int, tokenizer.convert_tokens_to_ids(name)) for name in (GOOD, BAD))
    if isinstance(tokenizer.chat_template, str) and GOOD not in tokenizer.chat_template:
        tokenizer.chat_template += "{% if add_generation_prompt %}" + GOOD + "{% endif %}"
    return _marked(training, good, bad), None if held is None else _marked(held, good, good)


def _grow(policy: Policy, size: int) -> None:
    """Make room for the new tokens, whose embeddings start as the mean of all."""
    base: Any = policy.base
    old = size - 2
    if size > base.get_input_embeddings().weight.shape[0]:
        base.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        for table in (base.get_input_embeddings(), base.get_output_embeddings()):
            table.weight[old:size] = table.weight[:old].mean(0)
    policy.adopt(policy.model)


def _marked(corpus: Corpus, good: int, bad: int) -> Corpus:
    """The corpus with each tree once per token that its rows want, those for good answers first."""
    trees: list[Tree] = []
    records: list[Record] = []
    rows: dict[int, Row] = {}
    for token, wanted in ((good, True), (bad, False)) if good != bad else ((good, None),):
        for k, tree in enumerate(corpus.trees):
            mine = [(i, r) for i, r in enumerate(corpus.rows) if r.tree == k and wanted in (None, bool(r.desirable))]
            if mine:
                rows |= {i: _moved(row, len(trees)) for i, row in mine}
                trees.append(replace(tree, prompt=np.append(tree.prompt, np.int32(token))))
                records.append(corpus.records[k])
    return replace(corpus, records=tuple(records), trees=tuple(trees), rows=tuple(rows[i] for i in sorted(rows)))


def _moved(row: Row, tree: int) -> Row:
    return replace(row, tree=tree)
