"""Answers from a model: batched sampling whose result does not depend on how it was batched.

Every row draws from its own random stream, seeded by (seed, the row's number), one uniform number per token, turned
into a token by inverting the distribution's cumulative sum. So row 7 gets the same answer alone, in a batch of 512, or
after other rows have finished and left the batch (up to the rounding of a batched matrix product, which may tip a token
in a million).

    prompts, sorted by length -> batches, left-padded -> one token per row and step -> rows that stopped leave
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prospect.engine.device import release, within_memory
from prospect.engine.policy import Policy
from prospect.errors import RunError

LEAVE = 0.2
"""Rows that stopped leave the batch once they are this fraction of it: leaving copies the whole cache."""


@dataclass(frozen=True, slots=True)
class Generated:
    """An answer. `ids` end with the stop token where the model ended it itself (`complete`); `text` has none."""

    ids: tuple[int, ...]
    text: str
    complete: bool


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn. `temperature` 0 takes the likeliest; `top_p` below 1 draws from the fewest likeliest tokens
    whose probabilities reach it (Holtzman et al. 2020, arXiv 1904.09751)."""

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        assert self.temperature >= 0, f"temperature {self.temperature}"
        assert 0 < self.top_p <= 1, f"top_p {self.top_p}"

    def draw(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """logits (B, V), uniform (B,) in [0, 1) float64 -> token ids (B,)."""
        if self.temperature == 0:
            return logits.argmax(-1)
        probability = torch.softmax(logits.float() / self.temperature, -1)
        if self.top_p == 1:
            return _invert(probability, uniform)
        ordered, tokens = probability.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        drawn = _invert(ordered.masked_fill(before >= self.top_p, 0), uniform)
        return tokens.gather(-1, drawn[:, None])[:, 0]


def _invert(mass: Tensor, uniform: Tensor) -> Tensor:
    """The token (B,) at which the cumulative mass (B, V) first exceeds `uniform` times its total; never one of mass
    0."""
    # float64: over a large vocabulary a float32 sum is off by more than the probability of a rare token.
    reached = mass.cumsum(-1, dtype=torch.float64)
    token = torch.searchsorted(reached, (uniform * reached[:, -1])[:, None], right=True)[:, 0]
    return token.clamp(max=mass.shape[-1] - 1)


def generate(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 128,
    seed: int = 0,
    batch_size: int = 256,
    stop: Sequence[int] | None = None,
    numbers: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Generated]:
    """One answer per prompt (token ids, as the model sees them at inference), in the order given.

    An answer ends with one of `stop` (default: `stop_ids(policy)`), at `max_new_tokens`, or at the model's context.
    Deterministic for a seed on one machine. `numbers` (0 or more, of any size) say which random stream each prompt
    draws from, instead of its place: with them an answer does not depend on what else is asked. `progress` is called
    with (answers done, all). Where memory runs out, the batches are half as large from there on. Raises RunError where
    one answer alone does not fit.
    """
    assert all(len(prompt) for prompt in prompts), "an empty prompt has no last token to go on from"
    ends = frozenset(stop_ids(policy) if stop is None else stop)

    def draw(rows: Sequence[int]) -> list[tuple[int, int]]:
        return list(_sample(policy, prompts, rows, Sampling(temperature, top_p), max_new_tokens, seed, ends, numbers))

    done: dict[int, list[int]] = {}
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    while len(done) < len(order):
        rows = order[len(done) : len(done) + batch_size]
        drawn = within_memory(partial(draw, rows))
        if drawn is None:
            release(policy.device)
            if len(rows) == 1:
                raise RunError(
                    f"out of memory for the answer to one prompt of {len(prompts[rows[0]])} tokens. Ask for a shorter "
                    "answer, or use --precision bf16 or a smaller model"
                )
            batch_size = len(rows) // 2
            continue
        done |= {row: [] for row in rows}
        for row, token in drawn:
            done[row].append(token)
        if progress:
            progress(len(done), len(prompts))
    return [_generated(policy, done[row], ends) for row in range(len(prompts))]


def stream(
    policy: Policy,
    prompt: Sequence[int],
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 512,
    seed: int = 0,
    stop: Sequence[int] | None = None,
) -> Iterator[str]:
    """The answer to one prompt as text, piece by piece, for a terminal; joined it is what `generate` returns for row 0.

    A piece is held back while it ends in half a character, whose bytes are spread over several tokens.
    """
    ends = frozenset(stop_ids(policy) if stop is None else stop)
    ids: list[int] = []
    shown = 0
    for _, token in _sample(policy, [prompt], [0], Sampling(temperature, top_p), max_new_tokens, seed, ends):
        ids.append(token)
        text = _generated(policy, ids, ends).text
        if len(text) > shown and not text.endswith("\ufffd"):
            yield text[shown:]
            shown = len(text)
    text = _generated(policy, ids, ends).text
    if len(text) > shown:
        yield text[shown:]


def stop_ids(policy: Policy) -> tuple[int, ...]:
    """What ends an answer: the end-of-turn tokens of the chat template, the model's and the tokenizer's own."""
    from prospect.data.tokens import Encoder

    assert policy.tokenizer is not None, "a policy without a tokenizer knows no words"
    ids = list(Encoder(policy.tokenizer).end_of_turn_ids)
    for source in (getattr(policy.model, "generation_config", None), policy.tokenizer):
        own = getattr(source, "eos_token_id", None)
        ids += own if isinstance(own, list) else [] if own is None else [own]
    return tuple(dict.fromkeys(ids))


def _generated(policy: Policy, ids: Sequence[int], ends: frozenset[int]) -> Generated:
    assert policy.tokenizer is not None, "a policy without a tokenizer knows no words"
    complete = bool(ids) and ids[-1] in ends
    text = policy.tokenizer.decode(list(ids[:-1] if complete else ids), skip_special_tokens=True)
    return Generated(tuple(ids), str(text), complete)


def _sample(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[int],
    sampling: Sampling,
    max_new_tokens: int,
    seed: int,
    ends: frozenset[int],
    numbers: Sequence[int] | None = None,
) -> Iterator[tuple[int, int]]:
    """(row, token) of one batch as they are drawn, step by step; a row's last token is a stop token or at the limit."""
    room = {i: min(max_new_tokens, policy.context - len(prompts[i])) for i in rows}
    alive = [i for i in rows if room[i] > 0]
    if not alive:
        return
    uniform = {i: np.random.default_rng((seed, i if numbers is None else numbers[i])).random(room[i]) for i in alive}
    decoder = _Decoder(policy, [prompts[i] for i in alive])
    step = 0
    while True:
        # A row that ended and has not left yet goes on drawing, from any number, and nobody hears it.
        draws = torch.tensor([uniform[i][min(step, room[i] - 1)] for i in alive], dtype=torch.float64)
        tokens = sampling.draw(decoder.logits, draws.to(decoder.logits.device))
        step += 1
        going = []
        for k, (row, token) in enumerate(zip(alive, tokens.tolist(), strict=True)):
            if step <= room[row]:
                yield row, token
            if token in ends:
                room[row] = 0
            if step < room[row]:
                going.append(k)
        if not going:
            return
        if len(going) <= (1 - LEAVE) * len(alive):
            decoder.keep(going)
            alive, tokens = [alive[k] for k in going], tokens[going]
        decoder.advance(tokens)


class _Decoder:
    """The state of one batch between two tokens: `logits` (B, V) predict the next one of each row.

    A model that returns no cache (Mamba, RWKV) reads everything again for each token, its rows padded on the right,
    where a model that reads from left to right never sees it.
    """

    def __init__(self, policy: Policy, prompts: Sequence[Sequence[int]]) -> None:
        self.policy, self.model = policy, policy.base
        accepted = inspect.signature(self.model.forward).parameters
        self.options = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self.with_positions = "position_ids" in accepted
        self.cache: Any = None
        self.rows: list[list[int]] | None = None
        longest = max(map(len, prompts))
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.as_tensor(np.asarray(prompt, dtype=np.int64))
            mask[row, longest - len(prompt) :] = 1
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        # Without padding attention needs no mask, and runs faster for it.
        self.mask = None if bool(mask.all()) else mask.to(policy.device)
        self.positions = positions.to(policy.device)
        if "past_key_values" in accepted:
            self._forward(ids.to(policy.device))
        if self.cache is None:
            self.rows = [list(prompt) for prompt in prompts]
            self._read_again(self.rows)

    def _forward(self, ids: Tensor) -> None:
        positions = {"position_ids": self.positions} if self.with_positions else {}
        with torch.no_grad(), self.policy.autocast():
            output = self.model(
                input_ids=ids,
                attention_mask=self.mask,
                past_key_values=self.cache,
                use_cache=True,
                **positions,
                **self.options,
            )
        self.cache, self.logits = getattr(output, "past_key_values", None), output.logits[:, -1]

    def _read_again(self, rows: Sequence[Sequence[int]]) -> None:
        ends = torch.tensor([len(row) - 1 for row in rows])
        ids = torch.zeros(len(rows), int(ends.max()) + 1, dtype=torch.long)
        for padded, row in zip(ids, rows, strict=True):
            padded[: len(row)] = torch.as_tensor(np.asarray(row, dtype=np.int64))
        with torch.no_grad(), self.policy.autocast():
            logits = self.model(input_ids=ids.to(self.policy.device), use_cache=False).logits
        self.logits = logits[torch.arange(len(rows)), ends.to(logits.device)]

    def advance(self, tokens: Tensor) -> None:
        """Go one token on: tokens (B,)."""
        if self.rows is not None:
            self.rows = [[*row, token] for row, token in zip(self.rows, tokens.tolist(), strict=True)]
            self._read_again(self.rows)
            return
        # Rows that ended and have not left yet may run into the end of the context: they stay on its last position.
        self.positions = (self.positions[:, -1:] + 1).clamp(max=self.policy.context - 1)
        if self.mask is not None:
            self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
        self._forward(tokens[:, None])

    def keep(self, rows: list[int]) -> None:
        """Forget all rows but these."""
        if self.rows is not None:
            self.rows = [self.rows[row] for row in rows]
            return
        index = torch.tensor(rows, device=self.positions.device)
        self.cache.reorder_cache(index)
        self.positions = self.positions[index]
        self.mask = None if self.mask is None else self.mask[index]
