"""Do two models mean the same by a token id? Else their log-probs of it cannot be compared.

A larger embedding than the tokenizer fills, and tokens that one of the two has and the data do not use, do no harm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from prospect.engine.packing import Ids
from prospect.engine.policy import Policy
from prospect.engine.scoring import Query
from prospect.errors import ModelError

PROBE = "  Two  spaces, CAPITALS, naïve Ünïcode, 日本語, 🙂, 1234567 3.14, a\ttab\n\nand lines; don't(x[0]!= `y`)"
SAMPLES = 200
"""Texts of the data that both tokenizers are asked for."""


def require_embedded(policy: Policy, ids: Iterable[Ids]) -> None:
    """Raises ModelError where a token id has no row in the embeddings: CUDA would end the process over it."""
    rows = cast(Any, policy.base.get_input_embeddings()).weight.shape[0]
    largest = max((int(some.max()) for some in ids if len(some)), default=0)
    if largest >= rows:
        assert policy.tokenizer is not None, "ids of texts come from a tokenizer"
        raise ModelError(
            f"the data have the token {policy.tokenizer.convert_ids_to_tokens(largest)!r} with the id {largest}, but "
            f"{policy.name} has embeddings for {rows} tokens only. Take the tokenizer that belongs to the weights, or "
            "an adapter that was saved with its embeddings"
        )


def require_comparable(policy: Policy, reference: Policy, queries: Sequence[Query]) -> None:
    """Raises ModelError unless the reference can read the queries and means the same as the policy by every token."""
    mine, theirs = policy.tokenizer, reference.tokenizer
    assert mine is not None and theirs is not None, "models that read text have tokenizers"
    difference = _different_vocabulary(mine, theirs, queries) or _different_behaviour(mine, theirs, queries)
    if difference:
        raise ModelError(
            f"the reference {reference.name} has another tokenizer than {policy.name}: {difference}. Log-probs of "
            "different tokens cannot be compared: choose a reference of the same family"
        )
    longest = max((len(prompt) + len(answer) for prompt, answer in queries), default=0)
    if longest > reference.context:
        raise ModelError(
            f"an answer and its prompt have {longest} tokens, but the reference {reference.name} reads at most "
            f"{reference.context}. Choose --max-length {reference.context} or another reference"
        )
    require_embedded(reference, (ids for query in queries for ids in query))


def _different_vocabulary(
    mine: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, queries: Sequence[Query]
) -> str:
    known, other = mine.get_vocab(), theirs.get_vocab()
    for token, number in known.items():
        if other.get(token, number) != number:
            return f"the token {token!r} has the id {number} in one and {other[token]} in the other"
    names = {number: token for token, number in known.items()}
    for number in np.unique(np.concatenate([np.zeros(0, np.int32), *(ids for query in queries for ids in query)])):
        if names.get(int(number)) not in other:
            return f"the data have the token {names.get(int(number))!r}, which the reference does not know"
    return ""


def _different_behaviour(
    mine: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, queries: Sequence[Query]
) -> str:
    for text in (PROBE, *(str(mine.decode([*prompt, *answer])) for prompt, answer in islice(queries, SAMPLES))):
        one, two = (list(t(text, add_special_tokens=False, verbose=False)["input_ids"]) for t in (mine, theirs))
        if one != two:
            at = next((k for k, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
            parts = [mine.convert_ids_to_tokens(ids[at : at + 5]) for ids in (one, two)]
            return f"of {text[:60]!r} one makes the tokens {parts[0]} where the other makes {parts[1]}"
    return ""
