"""What goes into the engine and what comes out: trees packed into one row of tokens without padding, log-probs per token.

Shapes: T packed tokens, N completions, M completion tokens (the targets).

A tree is laid out as its prompt followed by each completion without its last token, which nothing has to predict from:

    tokens      p0 p1 p2 | a0 a1 | b0 b1 b2 |        completions  a0 a1 a2  and  b0 b1 b2 b3
    positions    0  1  2 |  3  4 |  3  4  5 |
    predict     (p2 a0 a1), (p2 b0 b1 b2)            p2 predicts the first token of every completion
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prospect.engine.attention import Segments, segment

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Branches:
    """One prompt (p,) with the completions (c,) to score in this pass; p >= 1 and every c >= 1."""

    prompt: Ids
    completions: tuple[Ids, ...]


@dataclass(frozen=True, slots=True)
class Forest:
    """Trees in one row. `predict` (M,) is the packed index whose hidden state predicts target k; completion n owns the
    targets `offsets[n]:offsets[n + 1]`."""

    input_ids: Tensor  # (1, T) int64
    position_ids: Tensor  # (1, T) int64
    predict: Tensor  # (M,) int64
    targets: Tensor  # (M,) int64
    offsets: Tensor  # (N + 1,) int64, on the CPU
    segments: Segments

    @property
    def tokens(self) -> int:
        """T, the tokens the model computes."""
        return self.input_ids.shape[1]


@dataclass(frozen=True, slots=True)
class Output:
    """Log-probs of completion tokens in nats, in the order the completions were given. float32; float64 for a float64 model.
    `token_sum_p2` is the sum over the vocabulary of p^2 at each token, where it was asked for."""

    token_logp: Tensor  # (M,)
    offsets: Tensor  # (N + 1,) int64, on the CPU
    token_sum_p2: Tensor | None = None  # (M,)

    def lengths(self) -> Tensor:
        """(N,) tokens of each completion, on the device of the log-probs."""
        return self.offsets.diff().to(self.token_logp.device)

    def logp(self) -> Tensor:
        """(N,) log-prob of each completion: the sum over its tokens."""
        # Not index_add: on CUDA that one adds in any order.
        return torch.segment_reduce(self.token_logp, "sum", lengths=self.lengths(), unsafe=True)


def pack(trees: Sequence[Branches], device: torch.device | str = "cpu") -> Forest:
    """Lay the trees out in one row, in the order given; no token is padding and no prompt is repeated.

    Every tree needs a prompt token and a completion, every completion a token.
    """
    pieces: list[Ids] = []  # per tree the prompt, then each completion without its last token
    completions: list[Ids] = []
    branches: list[int] = []  # completions per tree
    for tree in trees:
        assert len(tree.prompt) and tree.completions and all(map(len, tree.completions)), (
            "an empty prompt or completion"
        )
        pieces.append(tree.prompt)
        pieces.extend(c[:-1] for c in tree.completions)
        completions.extend(tree.completions)
        branches.append(len(tree.completions))

    lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
    starts = np.cumsum(lengths) - lengths
    is_prompt = np.zeros(len(pieces), bool)
    is_prompt[np.cumsum([0, *(n + 1 for n in branches)])[:-1]] = True
    prompt_lengths = np.repeat(lengths[is_prompt], branches)  # of each completion's prompt
    prompt_starts = np.repeat(starts[is_prompt], branches)

    first_position = np.zeros(len(pieces), np.int64)
    first_position[~is_prompt] = prompt_lengths
    positions = np.arange(lengths.sum()) + np.repeat(first_position - starts, lengths)

    target_lengths = lengths[~is_prompt] + 1
    offsets = np.concatenate([[0], np.cumsum(target_lengths)])
    predict = np.arange(offsets[-1]) + np.repeat(starts[~is_prompt] - 1 - offsets[:-1], target_lengths)
    predict[offsets[:-1]] = prompt_starts + prompt_lengths - 1

    def tensor(array: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array.astype(np.int64)).to(device)

    return Forest(
        input_ids=tensor(_concatenate(pieces))[None],
        position_ids=tensor(positions)[None],
        predict=tensor(predict),
        targets=tensor(_concatenate(completions)),
        offsets=torch.from_numpy(offsets),
        segments=segment(prompt_starts, prompt_lengths, starts[~is_prompt], lengths[~is_prompt], device),
    )


def _concatenate(arrays: list[Ids]) -> Ids:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.int32)
