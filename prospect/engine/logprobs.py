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
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from prospect.engine import fused

CHUNK = 1 << 25
"""Logits held at once in a matrix product: 64 MiB in bfloat16, twice that in float32."""
IN_CACHE = 1 << 20
"""Logits at once in softmax and its derivative on a CPU, which go over them several times in float32: 4 MiB."""
ON_CUDA = 4
"""CHUNK is so much larger on CUDA, where every part costs launches, and nothing is cut further. Not measured yet."""
KEPT = 1 << 27
"""Bytes of derivatives by logits that forward keeps for backward."""
AT_ONCE = 2048
"""Tokens of the vocabulary in a float32 product on a CPU."""

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
            if self.fused and not want_sum_p2 and fused.head_suits(hidden, weight, bias, self.scale, compute_dtype):
                options: Any = {"scale": self.scale, "softcap": self.softcap, "dtype": compute_dtype}
                return fused.head_logp(hidden, weight, targets, **options), None
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
                for rows in _chunks(hidden, self.vocabulary, CHUNK)
            ]
        logp, sum_p2 = zip(*parts, strict=True)
        return torch.cat(logp), torch.cat(sum_p2) if want_sum_p2 else None

    def logits(self, hidden: Tensor, *, compute_dtype: torch.dtype) -> Tensor:
        """All of them at once, (M, V) float32 at least, for the few places that need a whole distribution."""
        with torch.autocast(hidden.device.type, torch.bfloat16, enabled=compute_dtype == torch.bfloat16):
            z = self.module(hidden.to(compute_dtype) if compute_dtype != torch.bfloat16 else hidden)
        return finish(z, None, self.scale, self.softcap)[0]

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
    frozen one costs none. The result is float32, for the compute dtype float64 it is float64.
    """
    logits = _Logits(bias, scale, softcap, compute_dtype, want_sum_p2)
    keep = torch.is_grad_enabled() and len(hidden) * len(weight) * compute_dtype.itemsize <= KEPT
    logp, sum_p2 = _TokenLogp.apply(hidden, weight, bias, targets, logits, keep)  # type: ignore[no-untyped-call]
    return logp, sum_p2


@dataclass(frozen=True, slots=True)
class _Logits:
    """What is done to W h, and what is asked of it."""

    bias: Tensor | None
    scale: float
    softcap: float | None
    dtype: torch.dtype
    want_sum_p2: bool

    def look(self, raw: Tensor, targets: Tensor, want_slopes: bool) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Of products (m, V) the scores (m,) and, where asked for, the slopes: the derivatives (m, V) of the log-probs,
        and of the sums of p^2, by the products, in the dtype of these."""
        logp = raw.new_empty(len(raw), dtype=_wide(self.dtype))
        sum_p2 = torch.empty_like(logp) if self.want_sum_p2 else None
        slopes = [torch.empty_like(raw) for _ in range((1 + self.want_sum_p2) * want_slopes)]
        for rows in _chunks(raw, raw.shape[1], IN_CACHE if raw.device.type == "cpu" else CHUNK):
            z, bend = finish(raw[rows], self.bias, self.scale, self.softcap)
            p = z.log_softmax(-1)
            at = targets[rows, None]
            logp[rows] = p.gather(-1, at)[:, 0]
            if slopes or sum_p2 is not None:
                p.exp_()
            if sum_p2 is not None:
                sum_p2[rows] = p.square().sum(-1)
            if not slopes:
                continue
            if sum_p2 is not None:
                slopes[1][rows] = self._unscaled((p - sum_p2[rows, None]).mul_(p).mul_(2), bend)
            # 1 - p of the target from its log-prob: the difference would lose what matters of a p close to 1.
            slopes[0][rows] = self._unscaled(p.neg_().scatter_(-1, at, -logp[rows, None].expm1()), bend)
        return logp, sum_p2, slopes

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
        sum_p2, kept = torch.empty_like(logp) if logits.want_sum_p2 else None, []
        with torch.autocast(hidden.device.type, enabled=False):
            head = weight.to(logits.dtype)
            for rows in _chunks(hidden, len(weight), CHUNK):
                raw = _products(hidden[rows].to(logits.dtype), head)
                logp[rows], squares, slopes = logits.look(raw, targets[rows], keep)
                if sum_p2 is not None and squares is not None:
                    sum_p2[rows] = squares
                kept += slopes
        ctx.save_for_backward(hidden, weight, bias, targets, *kept)
        ctx.logits = logits
        return logp, sum_p2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, *kept = ctx.saved_tensors
        dtype, wide = ctx.logits.dtype, _wide(ctx.logits.dtype)
        wanted = zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True)
        by_hidden, by_weight, by_bias = (torch.zeros_like(x, dtype=wide) if wants else None for x, wants in wanted)
        # Backward may run inside or outside of autocast; the dtypes here are chosen by hand.
        with torch.autocast(hidden.device.type, enabled=False):
            head = weight.to(dtype)
            for rows in _chunks(hidden, len(weight), CHUNK):
                h = hidden[rows]
                slopes = kept[: 1 + ctx.logits.want_sum_p2]
                del kept[: len(slopes)]
                slopes = slopes or ctx.logits.look(_products(h.to(dtype), head), targets[rows], True)[2]
                for grad, slope in zip(grads, slopes, strict=False):
                    if grad is None:
                        continue
                    # A row's factor is put on the narrow sides of the products.
                    factor = grad[rows, None]
                    if by_hidden is not None:
                        by_hidden[rows] += (slope @ head).to(wide).mul_(factor)
                    if by_weight is not None:
                        by_weight += slope.T @ (h * factor).to(dtype)
                    if by_bias is not None:
                        by_bias += (slope.to(wide) * factor).sum(0)
        found = zip((by_hidden, by_weight, by_bias), (hidden, weight, bias), strict=True)
        return *(None if g is None else g.to(x.dtype) for g, x in found), None, None, None


def _products(hidden: Tensor, head: Tensor) -> Tensor:
    """(M, V). In float32 on a CPU some of the vocabulary at a time: with few rows the library's product of the whole is
    up to half as fast (`python -m benchmarks.micro --only head`)."""
    if hidden.device.type != "cpu" or hidden.dtype != torch.float32:
        return hidden @ head.T
    raw = hidden.new_empty(len(hidden), len(head))
    for begin in range(0, len(head), AT_ONCE):
        part = slice(begin, begin + AT_ONCE)
        torch.mm(hidden, head[part].T, out=raw[:, part])
    return raw


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _chunks(rows: Tensor, vocabulary: int, size: int) -> Iterator[slice]:
    step = max(1, size * (ON_CUDA if rows.is_cuda else 1) // vocabulary)
    return (slice(begin, begin + step) for begin in range(0, len(rows), step))
