"""From hidden states to token log-probs without ever holding (tokens x vocabulary).

The head runs on chunks of rows. What backward needs, the derivative of each log-prob by the logits, is as large as
they are: forward keeps it where that is small enough, else backward computes it again. Softmax and sums are float32
(float64 for a float64 model), whatever the matrix products run in. M rows (completion tokens), H hidden size, V
vocabulary:

    z = softcap * tanh(scale * (W h + b) / softcap)            log p(target) = z[target] - logsumexp(z)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from prospect.engine.device import head_logp, head_suits

CHUNK = {"cpu": 1 << 24, "cuda": 1 << 25}
"""Logits held at once in a matrix product, by kind of device: on a CPU 32 MiB in bfloat16, twice that in float32."""
IN_CACHE = {"cpu": 1 << 20, "cuda": 1 << 25}
"""Logits at once in softmax and its derivative, which go over them several times in float32: 4 MiB on a CPU."""
KEPT = {"cpu": 1 << 27, "cuda": 1 << 32}
"""Bytes of derivatives by logits that forward keeps for backward, which then has no product to repeat. The head in the
dtype of the products is kept beside them."""

VOCABULARY_PART = 1 << 13
"""Tokens of the vocabulary whose gradient is summed at once."""

Scores = tuple[Tensor, Tensor | None]
"""Log-probs (M,) and, where asked for, the sum over the vocabulary of p^2 (M,)."""


@dataclass(frozen=True, slots=True)
class Head:
    """The output embeddings of a model and what its authors do to their logits. `module` is a plain Linear, or whatever
    else maps (M, H) to (M, V), such as one that carries an adapter. `fused` asks for another package's kernel where it
    is exact."""

    module: nn.Module
    vocabulary: int
    scale: float = 1.0
    softcap: float | None = None
    fused: bool = False

    def logp(self, hidden: Tensor, targets: Tensor, *, compute_dtype: torch.dtype, want_sum_p2: bool) -> Scores:
        """Scores of targets (M,) under hidden (M, H)."""
        if type(self.module) is nn.Linear:
            weight, bias = self.module.weight, self.module.bias
            if self.fused and not want_sum_p2 and head_suits(hidden, weight, bias, self.scale, compute_dtype):
                options: Any = {"scale": self.scale, "softcap": self.softcap, "dtype": compute_dtype}
                return head_logp(hidden, weight, targets, **options), None
            return token_logp(
                hidden,
                weight,
                targets,
                bias=bias,
                scale=self.scale,
                softcap=self.softcap,
                compute_dtype=compute_dtype,
                want_sum_p2=want_sum_p2,
            )
        with torch.autocast(hidden.device.type, torch.bfloat16, enabled=compute_dtype == torch.bfloat16):
            parts: list[Scores] = [
                checkpoint(self._chunk, hidden[rows], targets[rows], want_sum_p2, use_reentrant=False)
                for rows in self.chunks(hidden)
            ]
        logp, sum_p2 = zip(*parts, strict=True)
        return torch.cat(logp), torch.cat(sum_p2) if want_sum_p2 else None

    def logits(self, hidden: Tensor, *, compute_dtype: torch.dtype) -> Tensor:
        """All of them at once, (M, V) float32 at least, for the few places that need a whole distribution."""
        with torch.autocast(hidden.device.type, torch.bfloat16, enabled=compute_dtype == torch.bfloat16):
            z = self.module(hidden.to(compute_dtype) if compute_dtype != torch.bfloat16 else hidden)
        return finish(z, None, self.scale, self.softcap)[0]

    def chunks(self, hidden: Tensor) -> Iterator[slice]:
        """Rows of hidden (M, H) whose logits are held at once."""
        return _chunks(hidden, self.vocabulary, CHUNK)

    def _chunk(self, hidden: Tensor, targets: Tensor, want_sum_p2: bool) -> Scores:
        z, _ = finish(self.module(hidden), None, self.scale, self.softcap)
        return pick(z, targets, want_sum_p2)


def pick(z: Tensor, targets: Tensor, want_sum_p2: bool) -> Scores:
    """Scores from finished logits (M, V)."""
    logp = z.log_softmax(-1)
    return logp.gather(-1, targets[:, None]).squeeze(-1), logp.exp().square().sum(-1) if want_sum_p2 else None


def finish(z: Tensor, bias: Tensor | None, scale: float, softcap: float | None) -> tuple[Tensor, Tensor | None]:
    """W h to finished logits, float32 at least, and their derivative by the scaled ones (None: 1)."""
    z = z.to(_wide(z.dtype))
    if bias is not None:
        z = z + bias
    if scale != 1.0:
        z = z * scale
    if softcap is None:
        return z, None
    bent = torch.tanh(z / softcap)
    return bent * softcap, 1 - bent.square()


def token_logp(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    compute_dtype: torch.dtype,
    want_sum_p2: bool = False,
) -> Scores:
    """Log-prob in nats of targets (M,) given hidden (M, H) and weight (V, H), as at the top of this file.

    `weight` is the stored parameter: it is cast to `compute_dtype` inside, its gradient is summed in float32, and a
    frozen one costs none. The result is float32, for the compute dtype float64 it is float64. Where a gradient flows
    through the sums of p^2, which are mostly weights without one, backward computes the products again.
    """
    logits = _Logits(bias, scale, softcap, compute_dtype, want_sum_p2)
    size = len(hidden) * len(weight) * compute_dtype.itemsize
    keep = torch.is_grad_enabled() and size <= limit(KEPT, hidden.device)
    logp, sum_p2 = _TokenLogp.apply(hidden, weight, bias, targets, logits, keep)  # type: ignore[no-untyped-call]
    return logp, sum_p2


@dataclass(frozen=True, slots=True)
class _Logits:
    """What is done to W h, and whether sums of p^2 are wanted."""

    bias: Tensor | None
    scale: float
    softcap: float | None
    dtype: torch.dtype
    want_sum_p2: bool

    def look(self, raw: Tensor, targets: Tensor, slopes: Tensor) -> Scores:
        """Scores (m,) of products (m, V). Into `slopes` (0 to 2, m, V), the first of which may be `raw` itself, go
        the derivatives by the products: of minus the log-probs, and of the sums of p^2."""
        logp = raw.new_empty(len(raw), dtype=_wide(self.dtype))
        sum_p2 = torch.empty_like(logp) if self.want_sum_p2 else None
        for rows in _chunks(raw, raw.shape[1], IN_CACHE):
            p, bend = self._log_probs(raw[rows])
            at = targets[rows, None]
            logp[rows] = p.gather(-1, at)[:, 0]
            if len(slopes) or sum_p2 is not None:
                p.exp_()
            if sum_p2 is not None:
                sum_p2[rows] = p.square().sum(-1)
            if not len(slopes):
                continue
            if len(slopes) == 2 and sum_p2 is not None:
                slopes[1, rows] = self._unscaled((p - sum_p2[rows, None]).mul_(p).mul_(2), bend)
            # p - 1 of the target from its log-prob: the difference would lose what matters of a p close to 1.
            slopes[0, rows] = self._unscaled(p.scatter_(-1, at, logp[rows, None].expm1()), bend)
        return logp, sum_p2

    def _log_probs(self, raw: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of products (m, V) all log-probs, and `finish`'s derivative."""
        if self.bias is None and self.scale == 1.0 and self.softcap is None:
            return raw.log_softmax(-1, dtype=_wide(raw.dtype)), None
        z, bend = finish(raw, self.bias, self.scale, self.softcap)
        return z.log_softmax(-1), bend

    def _unscaled(self, by_logits: Tensor, bend: Tensor | None) -> Tensor:
        """From the derivative by finished logits to the one by products (in place)."""
        if bend is not None:
            by_logits *= bend
        return by_logits if self.scale == 1.0 else by_logits.mul_(self.scale)


class _TokenLogp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, logits: _Logits, keep: bool
    ) -> Scores:
        logp = hidden.new_empty(len(hidden), dtype=_wide(logits.dtype))
        sum_p2 = torch.empty_like(logp) if logits.want_sum_p2 else None
        all_slopes = hidden.new_empty(int(keep), len(hidden), len(weight), dtype=logits.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            head = weight.to(logits.dtype)
            for rows in _parts(hidden, len(weight), keep):
                raw = torch.mm(hidden[rows].to(logits.dtype), head.T, out=all_slopes[0, rows] if keep else None)
                logp[rows], squares = logits.look(raw, targets[rows], all_slopes[:, rows])
                if sum_p2 is not None and squares is not None:
                    sum_p2[rows] = squares
        ctx.save_for_backward(hidden, weight, bias, targets, head if keep and head is not weight else None, all_slopes)
        ctx.logits = logits
        ctx.set_materialize_grads(False)  # no product for what nobody differentiates
        return logp, sum_p2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(grad is None for grad in grads):
            return (None,) * 6
        hidden, weight, bias, targets, head, all_slopes = ctx.saved_tensors
        dtype, wide = ctx.logits.dtype, _wide(ctx.logits.dtype)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        by_hidden: list[Tensor] = []
        by_weight: Tensor | None = None
        by_bias: Tensor | None = None
        count = 1 if grads[1] is None else 2
        reuse = len(all_slopes) == count
        # Backward may run inside or outside of autocast; the dtypes here are chosen by hand.
        with torch.autocast(hidden.device.type, enabled=False):
            head = weight.to(dtype) if head is None else head
            for rows in _parts(hidden, len(weight), reuse):
                h, slopes = hidden[rows], all_slopes
                if not reuse:
                    slopes = h.new_empty(count, len(h), len(weight), dtype=dtype)
                    ctx.logits.look(torch.mm(h.to(dtype), head.T, out=slopes[0]), targets[rows], slopes)
                pulled = zip((-1, 1), grads, slopes, strict=False)
                terms = [(sign * grad[rows, None], slope) for sign, grad, slope in pulled if grad is not None]
                # A row's factor is put on the narrow sides of the products.
                if wants_hidden:
                    by_hidden.append(reduce(torch.add, [(slope @ head).to(wide).mul_(f) for f, slope in terms]))
                for factor, slope in terms:
                    if wants_weight:
                        by_weight = _plus_product(by_weight, slope, (h * factor).to(dtype), wide)
                    for part in _chunks(slope, len(weight), CHUNK) if wants_bias else ():
                        by_bias = _plus(by_bias, (slope[part].to(wide) * factor[part]).sum(0), wide)
        by_inputs = torch.cat(by_hidden) if wants_hidden else None, by_weight, by_bias
        pairs = zip(by_inputs, (hidden, weight, bias), strict=True)
        return *(None if g is None else g.to(x.dtype) for g, x in pairs), None, None, None


def _plus(total: Tensor | None, part: Tensor, wide: torch.dtype) -> Tensor:
    return part.to(wide) if total is None else total.add_(part)


def _plus_product(total: Tensor | None, slope: Tensor, hidden: Tensor, wide: torch.dtype) -> Tensor:
    """`total` (V, H) and the product of slope (m, V) and hidden (m, H) over m, some of the vocabulary at a time: no
    second matrix of this size is needed."""
    if total is None:
        total = hidden.new_zeros(slope.shape[1], hidden.shape[1], dtype=wide)
    for part in range(0, len(total), VOCABULARY_PART):
        total[part : part + VOCABULARY_PART] += slope[:, part : part + VOCABULARY_PART].T @ hidden
    return total


def _parts(hidden: Tensor, vocabulary: int, whole: bool) -> Iterator[slice]:
    """Rows whose products are held at once: all of them where they are kept anyway."""
    return iter([slice(0, len(hidden))]) if whole else _chunks(hidden, vocabulary, CHUNK)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def limit(limits: dict[str, int], device: torch.device) -> int:
    """One of the constants above for a device; other kinds are treated as CPUs."""
    return limits.get(device.type, limits["cpu"])


def _chunks(rows: Tensor, vocabulary: int, limits: dict[str, int]) -> Iterator[slice]:
    step = max(1, limit(limits, rows.device) // vocabulary)
    return (slice(begin, begin + step) for begin in range(0, max(1, len(rows)), step))
