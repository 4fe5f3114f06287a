"""What goes into the engine and what comes out: trees packed into one row without padding, log-probs per token.

Shapes: T packed tokens, N completions, M completion tokens (the targets). A tree is laid out as its prompt followed by
each completion without its last token, which nothing has to be predicted from:

    tokens      p0 p1 p2 | a0 a1 | b0 b1 b2            of the completions  a0 a1 a2  and  b0 b1 b2 b3
    positions    0  1  2 |  3  4 |  3  4  5
    predict     (p2 a0 a1) for a, (p2 b0 b1 b2) for b: p2 predicts the first token of every completion
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prospect.engine.attention import KeyValues, Segments
from prospect.engine.transfer import Ints, move, move_all

Ids = npt.NDArray[np.int32]

Query = tuple[Ids, Ids]
"""Prompt ids and completion ids."""


@dataclass(frozen=True, slots=True)
class Branches:
    """One prompt (p,) with the completions (c,) to score in this pass, at least one; p >= 1, every c >= 1."""

    prompt: Ids
    completions: tuple[Ids, ...]

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


@dataclass(frozen=True, slots=True)
class PromptCache:
    """What a pass remembers of its K prompts, without graph, so that other completions of them can be scored."""

    starts: Ints  # (K,)
    lengths: Ints  # (K,)
    last: Tensor  # (K, H), the hidden states that the first tokens are predicted from
    memory: KeyValues
    past: int  # tokens of the pass


@dataclass(frozen=True, slots=True)
class TokenLogps:
    """Log-probs of completion tokens in nats, completions in the order given; float32, for a float64 model float64.

    Where it was asked for, `token_sum_p2` is the sum over the vocabulary of p^2 at each token, `hidden` the state that
    each was predicted from, and `prompts` what other completions of the same prompts can be scored with.
    """

    token_logp: Tensor  # (M,)
    offsets: Tensor  # (N + 1,) int64, on the CPU
    token_sum_p2: Tensor | None = None  # (M,)
    hidden: Tensor | None = None  # (M, H)
    prompts: PromptCache | None = None


def pack(trees: Sequence[Branches], device: torch.device | str = "cpu", memory: KeyValues | None = None) -> Packed:
    """Lay at least one tree out in one row, in the order given; no token is padding, no prompt is repeated. `memory`
    will note the keys and values of the row."""
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
    segments = Segments(prompt_starts, prompt_lengths, starts[~is_prompt], lengths[~is_prompt], device, memory)
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
    where = prompts.starts[tree], prompts.lengths[tree], prompts.past + starts, lengths
    input_ids, position_ids, predict, targets = move_all(arrays, device, np.int64)
    segments = Segments(*where, device, prompts.memory, prompts.past)
    return Packed(input_ids, position_ids, predict, targets, torch.from_numpy(offsets), segments)


def to_tensor(array: npt.NDArray[Any], device: torch.device | str) -> Tensor:
    """int64, as embeddings and indices want it."""
    return move(torch.from_numpy(array.astype(np.int64)), device)
