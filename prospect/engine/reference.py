"""The reference model: a table of token log-probs, computed once and kept on disk, or earlier weights of the policy.
Beside them the pass that scores many answers, and the check that two models mean the same by a token.

The table is filled from the start model before training changes it, so full fine-tuning holds no second model, and it
is shared by every run whose reference is the same: another loss, beta, learning rate, seed or LoRA rank computes
nothing.

    cache/reference/KEY.sqlite    KEY: a hash of `identity`, all that moves a log-prob
        rows(hash of prompt ids and completion ids -> token log-probs in nats)
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedTokenizerBase

from prospect.data.schedule import fill
from prospect.data.store import ValueTable
from prospect.data.textids import Ids
from prospect.engine.checks import nan_source
from prospect.engine.device import COMPUTED_IN, release, within_memory
from prospect.engine.packing import Branches, Query, forward, move
from prospect.engine.policy import Policy
from prospect.errors import ModelError, RunError
from prospect.feedback.load import collector_paused

Floats = npt.NDArray[np.floating]
ENGINE_VERSION = 2
"""Raise it when a change to the engine moves log-probs by more than rounding: old tables are then left alone."""


def identity(policy: Policy) -> dict[str, Any]:
    """All that moves a policy's log-probs by more than the order of its sums, and what decides that order: the weights
    and how they are held, the arithmetic and its libraries, the way through the engine."""
    model, cuda = policy.model, policy.device.type == "cuda"
    tensors = chain(model.named_parameters(), model.named_buffers())
    held = "\n".join(sorted(f"{name} {tensor.dtype} {tuple(tensor.shape)}" for name, tensor in tensors))
    packages = ["torch", "transformers"] + ["peft"] * isinstance(model, PeftModel)
    packages += ["liger-kernel", "cut-cross-entropy"] if policy.kernels == "fused" else []
    return {
        "weights": policy.digest,
        "held": hashlib.sha256(held.encode()).hexdigest(),
        "precision": policy.precision,
        "device": torch.cuda.get_device_name(policy.device) if cuda else policy.device.type,
        "instructions": torch.backends.cpu.get_cpu_capability() if not cuda else "",
        "products": (torch.backends.cuda if cuda else torch.backends.mkldnn).matmul.fp32_precision.replace(
            "none", "ieee"
        ),
        "attention": [getattr(config, "_attn_implementation", None) for config in policy.configs],
        "experts": [getattr(config, "_experts_implementation", None) for config in policy.configs],
        "kernels": policy.kernels,
        "path": [policy.path, policy.checked_length, policy.chunked_head],
        "versions": {name: version(name) for name in packages} | {"engine": ENGINE_VERSION},
    }


def row_key(query: Query) -> bytes:
    """Identifies one row by its token ids."""
    prompt, completion = query
    return hashlib.blake2b(b"%d " % len(prompt) + prompt.tobytes() + completion.tobytes(), digest_size=16).digest()


class ReferenceTable:
    """Look-up from (prompt, completion) to the reference's token log-probs.

    `forwards` counts the completions computed by this object (0 when everything was in the table). Without a cache the
    rows are in memory alone.
    """

    def __init__(self, cache: Path | None, policy: Policy) -> None:
        self.key = hashlib.sha256(json.dumps(identity(policy), sort_keys=True).encode()).hexdigest()[:24]
        self.dtype = np.dtype(np.float64 if policy.precision == "fp64" else np.float32)
        self.path = None if cache is None else cache / "reference" / f"{self.key}.sqlite"
        self.forwards = 0
        self._memory: dict[bytes, Floats] = {}
        self._table = None if self.path is None else ValueTable(self.path)

    @property
    def damaged(self) -> int:
        """How many rows of the table were not what had been written; they are missing."""
        return 0 if self._table is None else self._table.damaged

    def token_logp(self, query: Query) -> Floats:
        """Token log-probs (c,) in nats of a row that `fill` or `missing` was told of. Raises KeyError otherwise."""
        return self._memory[row_key(query)]

    def scores(self, trees: Sequence[Branches], like: Tensor) -> Tensor:
        """Token log-probs (M,) of all completions of the trees, in their order, as a tensor like `like`."""
        rows = [self.token_logp((tree.prompt, completion)) for tree in trees for completion in tree.completions]
        return move(torch.from_numpy(np.concatenate(rows)).to(like.dtype), like.device)

    @collector_paused()
    def missing(self, queries: Iterable[Query]) -> list[Query]:
        """The queries that the table cannot answer yet, each once; what it can is loaded into memory."""
        by_key = {key: q for q in queries if (key := row_key(q)) not in self._memory}
        stored = {} if self._table is None else self._table.read(by_key)
        self._memory.update((key, np.frombuffer(value, self.dtype)) for key, value in stored.items())
        return [q for key, q in by_key.items() if key not in stored]

    def fill(
        self,
        policy: Policy,
        queries: Sequence[Query],
        *,
        token_budget: int,
        progress: Callable[[int, int], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Compute what is missing with `policy`, which must be the reference model, and keep it.

        Each batch is committed, so an interrupted pass goes on where it stopped; `progress(done, all)` is called after
        each, `stop()` asked before each. Where memory runs out, what is left goes on in batches half as large.
        """
        rest = self.missing(queries)
        done = 0
        for batch in score(policy, rest, token_budget=token_budget, stop=stop):
            rows = [(row_key(rest[number]), values.astype(self.dtype)) for number, values in batch]
            if self._table is not None:
                self._table.write([(key, value.tobytes()) for key, value in rows])
            self._memory.update(rows)
            done += len(rows)
            self.forwards += len(rows)
            if progress:
                progress(done, len(rest))


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
        for name, weight in self.weights.items():
            weight.copy_(weights[name])


def token_kl(policy: Policy, reference: LiveReference, trees: Sequence[Branches]) -> tuple[Tensor, Tensor]:
    """KL(pi(.|prefix) || pi_ref(.|prefix)) in nats at every completion token, (M,), and offsets (N+1,).

    Exact over the vocabulary. The gradient flows to the policy.
    """
    output = forward(policy, trees, want_hidden=True)
    assert output.hidden is not None
    divergence = _divergence(policy, reference, trees, output.hidden, lambda mine, theirs: (mine.exp(), mine - theirs))
    return divergence, output.offsets


def reference_kl(policy: Policy, reference: LiveReference, trees: Sequence[Branches], hidden: Tensor) -> Tensor:
    """KL(pi_ref(.|prefix) || pi(.|prefix)) in nats at every completion token, (M,), from the policy's hidden states (M,
    H) of `forward` over the same trees.

    Exact over the vocabulary. The gradient flows to the policy: through the hidden states, and to the head.
    """
    return _divergence(policy, reference, trees, hidden, lambda mine, theirs: (theirs.exp(), theirs - mine))


def _divergence(
    policy: Policy,
    reference: LiveReference,
    trees: Sequence[Branches],
    hidden: Tensor,
    of: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> Tensor:
    """At every token the sum over the vocabulary of the two factors that `of` makes of both models' log-probs. As many
    of these as the head holds at once are there at a time, and backward computes them again."""
    dtype = COMPUTED_IN[policy.precision]
    with torch.no_grad(), reference.in_place():
        other = forward(policy, trees, want_hidden=True).hidden
    assert other is not None

    def part(rows: slice) -> Tensor:
        with torch.no_grad(), reference.in_place():
            theirs = policy.head.logits(other[rows], compute_dtype=dtype).log_softmax(-1)
        mine = policy.head.logits(hidden[rows], compute_dtype=dtype).log_softmax(-1)
        probability, difference = of(mine, theirs)
        return (probability * difference).sum(-1)

    rows = list(policy.head.chunks(hidden))
    return torch.cat([checkpoint(part, some, use_reentrant=False, preserve_rng_state=False) for some in rows])


def kl_tokens(policy: Policy) -> int:
    """How many tokens `token_kl` should be asked for at once."""
    return max(1, LOGITS // policy.head.vocabulary)


def score(
    policy: Policy, queries: Sequence[Query], *, token_budget: int, stop: Callable[[], bool] = lambda: False
) -> Iterator[list[tuple[int, Floats]]]:
    """Batch by batch, the numbers of some queries with their token log-probs (c,) in nats; `stop()` is asked before
    each batch.

    Completions of one prompt share its computation. Where memory runs out, what is left goes on in batches half as
    large. Raises RunError where one answer alone does not fit, ModelError where a log-prob is not finite.
    """
    trees: dict[bytes, list[int]] = {}
    for number, (prompt, _) in enumerate(queries):
        trees.setdefault(prompt.tobytes(), []).append(number)
    pending = deque(_batches(queries, list(trees.values()), token_budget))
    while pending and not stop():
        batch = pending.popleft()
        token_logp = within_memory(partial(_token_logp, policy, queries, batch))
        if token_logp is None:
            release(policy.device)
            if sum(map(len, batch)) == 1:
                prompt, completion = queries[batch[0][0]]
                raise RunError(
                    f"out of memory for one answer of {len(prompt) + len(completion)} tokens alone. Choose a shorter "
                    "--max-length, --precision bf16, or a smaller model"
                )
            token_budget = min(token_budget, sum(_cost(queries, tree) for tree in batch)) // 2
            pending = deque(_batches(queries, [tree for part in (batch, *pending) for tree in part], token_budget))
            continue
        numbers = [number for tree in batch for number in tree]
        ends = np.cumsum([len(queries[number][1]) for number in numbers])
        if not np.isfinite(token_logp).all():
            place = int(np.flatnonzero(~np.isfinite(token_logp))[0])
            raise ModelError(
                _not_finite(policy, queries[numbers[int((ends <= place).sum())]], float(token_logp[place]))
            )
        yield list(zip(numbers, np.split(token_logp, ends[:-1]), strict=True))


@torch.no_grad()
def _token_logp(policy: Policy, queries: Sequence[Query], batch: list[list[int]]) -> Floats:
    """Of all answers of a batch, one behind the other."""
    trees = [Branches(queries[tree[0]][0], tuple(queries[number][1] for number in tree)) for tree in batch]
    values: Floats = forward(policy, trees).token_logp.cpu().numpy()
    return values


def _not_finite(policy: Policy, query: Query, value: float) -> str:
    prompt, completion = query
    text = policy.tokenizer.decode([*prompt, *completion]) if policy.tokenizer is not None else "its tokens"
    return (
        f"{policy.name or policy.architecture} gives a token the log-prob {value} in {str(text)[:80]!r}: "
        f"{nan_source(policy)}. Take an intact copy of the model, or leave that row out"
    )


def _cost(queries: Sequence[Query], tree: list[int]) -> int:
    """Tokens of a prompt with some of its completions."""
    return len(queries[tree[0]][0]) + sum(len(queries[number][1]) for number in tree)


def _batches(queries: Sequence[Query], trees: list[list[int]], budget: int) -> Iterator[list[list[int]]]:
    """Trees in order of length, as many at a time as the budget holds; a prompt's completions stay together as far as
    they fit."""
    parts: list[list[int]] = []
    for tree in trees:
        sizes = [len(queries[number][1]) for number in tree]
        parts += [tree[part] for part in fill(sizes, budget, base=len(queries[tree[0]][0]))]
    parts.sort(key=lambda part: _cost(queries, part))
    for batch in fill([_cost(queries, part) for part in parts], budget):
        yield parts[batch]


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
    own, other = mine.get_vocab(), theirs.get_vocab()
    for token, number in own.items():
        if other.get(token, number) != number:
            return f"the token {token!r} has the id {number} in one and {other[token]} in the other"
    names = {number: token for token, number in own.items()}
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
