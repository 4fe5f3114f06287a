"""The engine's front door: trees of token ids in, packed into one row without padding, the log-prob of every completion
token out.

Shapes: T packed tokens, N completions, M completion tokens (the targets). A tree is laid out as its prompt followed by
each completion without its last token, which nothing has to be predicted from:

    tokens      p0 p1 p2 | a0 a1 | b0 b1 b2            of the completions  a0 a1 a2  and  b0 b1 b2 b3
    positions    0  1  2 |  3  4 |  3  4  5
    predict     (p2 a0 a1) for a, (p2 b0 b1 b2) for b: p2 predicts the first token of every completion
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from prospect.data.textids import Ids, TargetIds

if TYPE_CHECKING:
    from prospect.engine.policy import Policy, TargetScores

Ints = npt.NDArray[np.int64]

Query = tuple[Ids, Ids]
"""Prompt ids and completion ids."""


@dataclass(frozen=True, slots=True)
class Branches:
    """One prompt (p,) with the completions (c,) to score in this pass, at least one; p >= 1, every c >= 1. `target_ids`
    are aligned with the completions where any has a target."""

    prompt: Ids
    completions: tuple[Ids, ...]
    target_ids: tuple[TargetIds | None, ...] = ()

    def __post_init__(self) -> None:
        assert self.completions
        assert all(map(len, (self.prompt, *self.completions)))


@dataclass(frozen=True, slots=True)
class Packed:
    """Trees in one row. The hidden state at `predict[k]` predicts `targets[k]`; completion n owns the targets
    `offsets[n]:offsets[n + 1]`."""

    input_ids: Tensor  # (1, T) int64
    position_ids: Tensor  # (1, T) int64
    predict: Tensor  # (M,) int64
    targets: Tensor  # (M,) int64
    offsets: Tensor  # (N + 1,) int64, on the CPU
    segments: Segments

    @property
    def tokens(self) -> int:
        """T, the tokens that the model computes."""
        return self.input_ids.shape[1]


@dataclass(slots=True)
class KeyValues:
    """Keys and values of every layer, (1, H, T, D) each, of a packed row, for more completions of its prompts. Once
    `full`, they stay, though backward may compute the row again."""

    layers: dict[nn.Module, tuple[Tensor, Tensor]] = field(default_factory=dict)
    full: bool = False


@dataclass(frozen=True, slots=True)
class PromptCache:
    """What a pass keeps of its K prompts, without graph, so that other completions of them can be scored."""

    starts: Ints  # (K,) places in the row
    lengths: Ints  # (K,)
    last_hidden: Tensor  # (K, H), the states that first tokens are predicted from
    key_values: KeyValues
    tokens: int  # of the row


@dataclass(frozen=True, slots=True)
class TokenLogps:
    """Log-probs of completion tokens in nats, completions in the order given; float32, for a float64 model float64.

    `token_sum_p2` is the sum over the vocabulary of p^2 at each token, `hidden` the state that each was predicted from,
    `prompts` what other completions of the same prompts are scored with; None without the `want_...` of each.
    """

    token_logp: Tensor  # (M,)
    offsets: Tensor  # (N + 1,) int64, on the CPU
    token_sum_p2: Tensor | None = None  # (M,)
    hidden: Tensor | None = None  # (M, H)
    prompts: PromptCache | None = None


class Span(NamedTuple):
    """The queries of one segment: `length` own tokens from `start` on, which see each other causally, and all of the
    `prompt` tokens from `prompt_start` on. The first branch of a tree has its prompt among its own tokens."""

    prompt_start: int
    prompt: int
    start: int
    length: int


class VarlenLayout(NamedTuple):
    """Segments for a kernel that takes ragged rows: segment b has the queries `query_ends[b]:query_ends[b + 1]` of the
    row, and as keys the tokens `keys[key_ends[b]:key_ends[b + 1]]`; the last query is the last key. `keys` None stands
    for all tokens, in order, once."""

    keys: Tensor | None  # (K,) int32
    query_ends: Tensor  # (B + 1,) int32
    key_ends: Tensor  # (B + 1,) int32
    most_queries: int
    most_keys: int


@dataclass(frozen=True, eq=False)
class Segments:
    """Where the prompt and the own tokens of each branch are; all (N,), tree after tree. A segment is a branch with its
    prompt; the first branch of a tree also answers for the prompt's own tokens.

    They are places in the row, or behind a row of `past` tokens computed before: then prompts lie in that one, and
    there is nothing to answer for but the branches' own tokens.
    """

    prompt_starts: Ints
    prompt_lengths: Ints
    starts: Ints
    lengths: Ints
    device: torch.device | str = "cpu"
    key_values: KeyValues | None = None
    past: int = 0

    @property
    def _is_first(self) -> npt.NDArray[np.bool_]:
        """(N,) Whether a branch answers for its prompt's tokens."""
        return (np.diff(self.prompt_starts, prepend=-1) > 0) & (self.past == 0)

    @property
    def pairs(self) -> int:
        """How many keys all queries together see."""
        own = self.lengths * self.prompt_lengths + self.lengths * (self.lengths + 1) // 2
        prompts = self.prompt_lengths * (self.prompt_lengths + 1) // 2
        return int(own.sum() + prompts[self._is_first].sum())

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """Every segment that has queries, in the row's order."""
        spans = []
        columns = (self.prompt_starts, self.prompt_lengths, self.starts, self.lengths, self._is_first)
        for prompt_start, prompt, start, length, is_first in zip(*(x.tolist() for x in columns), strict=True):
            if is_first:
                spans.append(Span(0, 0, prompt_start, prompt + length))
            elif length:
                spans.append(Span(prompt_start, prompt, start, length))
        return tuple(spans)

    @cached_property
    def varlen(self) -> VarlenLayout:
        """As a tree lies in the row, so lie the queries of its segments: only keys of prompts with several branches
        are gathered."""
        first, prompts = self._is_first, self.prompt_lengths
        rows = np.flatnonzero(first | (self.lengths > 0))
        queries, keys = (self.lengths + first * prompts)[rows], (self.lengths + prompts)[rows]
        ends = [np.concatenate([[0], np.cumsum(count)]) for count in (queries, keys)]
        index = []
        if ends[0][-1] < ends[1][-1]:
            positions = np.arange(ends[1][-1]) - np.repeat(ends[1][:-1], keys)
            prompt, at_prompt, at_own = (
                np.repeat(of[rows], keys) for of in (prompts, self.prompt_starts, self.starts - prompts)
            )
            index = [positions + np.where(positions < prompt, at_prompt, at_own)]
        query_ends, key_ends, *gathered = move_all([*ends, *index], self.device, np.int32)
        return VarlenLayout(
            gathered[0] if gathered else None, query_ends, key_ends, int(queries.max()), int(keys.max())
        )

    def with_past(self, layer: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's keys and values of this row, behind those of the row before it."""
        if not self.past:
            return key, value
        assert self.key_values is not None, "what is behind a row was computed from it"
        # One behind the other token by token, as what models give lies in memory.
        keys, values = (
            torch.cat([before.transpose(1, 2), own.transpose(1, 2).to(before.dtype)], 1).transpose(1, 2)
            for before, own in zip(self.key_values.layers[layer], (key, value), strict=True)
        )
        return keys, values

    def remember(self, layer: nn.Module, key: Tensor, value: Tensor, dtype: torch.dtype) -> None:
        """Keep a layer's keys and values for more completions, where somebody wants them."""
        if self.key_values is not None and not self.past and not self.key_values.full:
            self.key_values.layers[layer] = key.detach().to(dtype), value.detach().to(dtype)


def pack(trees: Sequence[Branches], device: torch.device | str = "cpu", key_values: KeyValues | None = None) -> Packed:
    """Lay at least one tree out in one row, in the order given; no token is padding, no prompt is repeated.
    `key_values` will get those of the row."""
    pieces = [piece for tree in trees for piece in (tree.prompt, *(c[:-1] for c in tree.completions))]
    completions = [completion for tree in trees for completion in tree.completions]
    branches = np.array([len(tree.completions) for tree in trees])

    lengths = np.array([len(piece) for piece in pieces])
    starts = np.cumsum(lengths) - lengths
    is_prompt = np.zeros(len(pieces), bool)
    is_prompt[np.cumsum(branches + 1) - branches - 1] = True
    prompt_lengths, prompt_starts = (np.repeat(of_piece[is_prompt], branches) for of_piece in (lengths, starts))

    first_positions = np.zeros(len(pieces), np.int64)
    first_positions[~is_prompt] = prompt_lengths
    positions = np.arange(lengths.sum()) + np.repeat(first_positions - starts, lengths)

    target_lengths = lengths[~is_prompt] + 1
    offsets = np.concatenate([[0], np.cumsum(target_lengths)])
    predict = np.arange(offsets[-1]) + np.repeat(starts[~is_prompt] - 1 - offsets[:-1], target_lengths)
    predict[offsets[:-1]] = prompt_starts + prompt_lengths - 1

    arrays = [np.concatenate(pieces)[None], positions[None], predict, np.concatenate(completions)]
    segments = Segments(prompt_starts, prompt_lengths, starts[~is_prompt], lengths[~is_prompt], device, key_values)
    input_ids, position_ids, predict, targets = move_all(arrays, device, np.int64)
    return Packed(input_ids, position_ids, predict, targets, torch.from_numpy(offsets), segments)


def pack_more(prompts: PromptCache, completions: Sequence[Sequence[Ids]], device: torch.device | str = "cpu") -> Packed:
    """Lay out further completions, of every prompt any number but in all at least one. `predict` counts through the
    prompts' K last states first, then through this row."""
    tree = np.repeat(np.arange(len(completions)), [len(some) for some in completions])
    flat = [completion for some in completions for completion in some]
    target_lengths = np.array([len(completion) for completion in flat])
    lengths = target_lengths - 1
    starts, offsets = np.cumsum(lengths) - lengths, np.concatenate([[0], np.cumsum(target_lengths)])
    positions = np.arange(lengths.sum()) + np.repeat(prompts.lengths[tree] - starts, lengths)
    predict = np.arange(offsets[-1]) + np.repeat(len(completions) + starts - 1 - offsets[:-1], target_lengths)
    predict[offsets[:-1]] = tree
    arrays = [np.concatenate([c[:-1] for c in flat])[None], positions[None], predict, np.concatenate(flat)]
    places = prompts.starts[tree], prompts.lengths[tree], prompts.tokens + starts, lengths
    segments = Segments(*places, device, prompts.key_values, prompts.tokens)
    input_ids, position_ids, predict, targets = move_all(arrays, device, np.int64)
    return Packed(input_ids, position_ids, predict, targets, torch.from_numpy(offsets), segments)


def move(tensor: Tensor, device: torch.device | str) -> Tensor:
    """`tensor` on `device`, to CUDA pinned and without waiting: a plain copy would make the host wait for all that the
    device has still to do, with every micro-batch."""
    if not _pins(tensor, device):
        return tensor.to(device)
    return _pinned(tensor).to(device, non_blocking=True)


def move_all(
    arrays: Sequence[npt.NDArray[Any]], device: torch.device | str, dtype: type[np.integer[Any]]
) -> list[Tensor]:
    """Arrays of any shapes as tensors of `dtype`, to CUDA all in one copy."""
    tensors = [torch.from_numpy(array.astype(dtype, copy=False)) for array in arrays]
    if not tensors or not _pins(tensors[0], device):
        return [tensor.to(device) for tensor in tensors]
    parts = move(torch.cat([tensor.flatten() for tensor in tensors]), device).split([t.numel() for t in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def take(values: Tensor, places: Sequence[int]) -> Tensor:
    """`values[places]`: a list as an index would be copied to the device while the host waits."""
    return values[move(torch.tensor(places, dtype=torch.int64), values.device)]


def _pins(tensor: Tensor, device: torch.device | str) -> bool:
    return tensor.device.type == "cpu" and torch.device(device).type == "cuda"


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory()


def forward(
    policy: Policy,
    trees: Sequence[Branches],
    *,
    want_sum_p2: bool = False,
    want_hidden: bool = False,
    want_prompts: bool = False,
) -> TokenLogps:
    """Score the completions of at least one tree on the path that the checks at load allow.

    Gradients flow to every trainable parameter; call it under `torch.no_grad()` where none is wanted. Prompts are
    remembered only where `on_trees` holds.
    """
    if on_trees(policy, trees):
        return forward_tree(policy, trees, want_sum_p2=want_sum_p2, want_hidden=want_hidden, want_prompts=want_prompts)
    return forward_padded(policy, trees, want_sum_p2=want_sum_p2, want_hidden=want_hidden)


def on_trees(policy: Policy, trees: Sequence[Branches]) -> bool:
    """Whether these are computed as packed trees."""
    longest = max(len(tree.prompt) + max(map(len, tree.completions)) for tree in trees)
    return policy.path == "tree" and longest <= policy.checked_length


def forward_tree(
    policy: Policy,
    trees: Sequence[Branches],
    *,
    want_sum_p2: bool = False,
    want_hidden: bool = False,
    want_prompts: bool = False,
) -> TokenLogps:
    """Score packed trees: no padding, every prompt computed once."""
    key_values = KeyValues() if want_prompts else None
    packed = pack(trees, policy.device, key_values)
    scores = _score(policy, packed, want_sum_p2=want_sum_p2, want_hidden=want_hidden or want_prompts)
    prompts = None
    if key_values is not None and scores.hidden is not None:
        key_values.full = True
        counts = np.array([len(tree.completions) for tree in trees])
        first = np.cumsum(counts) - counts
        last_hidden = scores.hidden.detach()[move(packed.offsets[first], policy.device)]
        starts, lengths = packed.segments.prompt_starts[first], packed.segments.prompt_lengths[first]
        prompts = PromptCache(starts, lengths, last_hidden, key_values, packed.tokens)
    return TokenLogps(scores.logp, packed.offsets, scores.sum_p2, scores.hidden if want_hidden else None, prompts)


def forward_more(policy: Policy, prompts: PromptCache, completions: Sequence[Sequence[Ids]]) -> TokenLogps:
    """Score other completions, without gradient, of prompts that a pass of `forward_tree` with the same weights
    remembers: `completions[k]` are prompt k's, maybe none, in all at least one."""
    packed = pack_more(prompts, completions, policy.device)
    with torch.no_grad():
        scores = _score(policy, packed, before=prompts.last_hidden)
    return TokenLogps(scores.logp, packed.offsets)


def _score(
    policy: Policy,
    packed: Packed,
    *,
    want_sum_p2: bool = False,
    want_hidden: bool = False,
    before: Tensor | None = None,
) -> TargetScores:
    inputs = {"input_ids": packed.input_ids, "position_ids": packed.position_ids, "segments": packed.segments}
    wants = {"want_sum_p2": want_sum_p2, "want_hidden": want_hidden}
    with policy.tree_attention():
        return policy.score(inputs, packed.predict, packed.targets, packed.segments.pairs, **wants, before=before)


def forward_padded(
    policy: Policy, trees: Sequence[Branches], *, want_sum_p2: bool = False, want_hidden: bool = False
) -> TokenLogps:
    """The slow oracle, with the contract of `forward`: every prompt with one completion is a right-padded row under the
    model's own attention. Trees are checked against it, and models that cannot be trusted with trees run on it."""
    rows = [(tree.prompt, completion) for tree in trees for completion in tree.completions]
    lengths = [len(prompt) + len(completion) - 1 for prompt, completion in rows]
    longest = max(lengths)
    input_ids = np.zeros((len(rows), longest), np.int64)
    for ids, length, (prompt, completion) in zip(input_ids, lengths, rows, strict=True):
        ids[:length] = np.concatenate([prompt, completion[:-1]])
    mask = np.arange(longest) < np.array(lengths)[:, None]
    starts = np.arange(len(rows)) * longest
    predict = [s + np.arange(len(p) - 1, n) for s, n, (p, _) in zip(starts, lengths, rows, strict=True)]
    targets = [completion for _, completion in rows]
    arrays = [input_ids, mask, np.concatenate(predict), np.concatenate(targets)]
    tokens, attention_mask, index, to_score = move_all(arrays, policy.device, np.int64)
    inputs = {"input_ids": tokens, "attention_mask": attention_mask}
    pairs = len(rows) * longest * (longest + 1) // 2
    scores = policy.score(inputs, index, to_score, pairs, want_sum_p2=want_sum_p2, want_hidden=want_hidden)
    offsets = np.cumsum([0, *map(len, targets)])
    return TokenLogps(scores.logp, torch.from_numpy(offsets), scores.sum_p2, scores.hidden)
