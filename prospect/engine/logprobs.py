"""From hidden states to token log-probs without ever holding (tokens x vocabulary).

The head runs on chunks of rows, and backward computes the logits of each chunk again. Softmax and sums are float32
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
IN_CACHE = 1 << 22
"""Logits at once in softmax and its derivative, which go over them several times in float32: 16 MiB."""
ON_CUDA = 4
"""Both are so much larger on CUDA, where every part costs launches. Not measured yet."""
KEPT = 1 << 26
"""Logits that backward finds again instead of computing them again: 128 MiB in bfloat16."""

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
    keep = torch.is_grad_enabled() and len(hidden) * len(weight) <= KEPT
    logp, sum_p2 = _TokenLogp.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, scale, softcap, compute_dtype, want_sum_p2, keep
    )
    return logp, sum_p2


class _TokenLogp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        softcap: float | None,
        dtype: torch.dtype,
        want_sum_p2: bool,
        keep: bool,
    ) -> Scores:
        logp = hidden.new_empty(len(hidden), dtype=_wide(dtype))
        log_total, sum_p2 = torch.empty_like(logp), torch.empty_like(logp) if want_sum_p2 else None
        with torch.autocast(hidden.device.type, enabled=False):
            head, kept = weight.to(dtype), []
            for rows in _chunks(hidden, len(weight), CHUNK):
                raw = hidden[rows].to(dtype) @ head.T
                for part in _chunks(raw, len(weight), IN_CACHE):
                    here = slice(rows.start + part.start, rows.start + part.start + len(raw[part]))
                    z, _ = finish(raw[part], bias, scale, softcap)
                    log_total[here] = z.logsumexp(-1)
                    logp[here] = z.gather(-1, targets[here, None]).squeeze(-1) - log_total[here]
                    if sum_p2 is not None:
                        sum_p2[here] = (z - log_total[here, None]).exp_().square_().sum(-1)
                if keep:
                    kept.append(raw)
        ctx.save_for_backward(hidden, weight, bias, targets, log_total, sum_p2, *kept)
        ctx.scale, ctx.softcap, ctx.dtype = scale, softcap, dtype
        return logp, sum_p2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_logp: Tensor, grad_sum_p2: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, log_total, sum_p2, *kept = ctx.saved_tensors
        wanted = zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True)
        grads = [torch.zeros_like(x, dtype=_wide(ctx.dtype)) if wants else None for x, wants in wanted]
        grad_hidden, grad_weight, grad_bias = grads
        # Backward may run inside or outside of autocast; the dtypes here are chosen by hand.
        with torch.autocast(hidden.device.type, enabled=False):
            head = weight.to(ctx.dtype)
            for number, rows in enumerate(_chunks(hidden, len(weight), CHUNK)):
                h = hidden[rows].to(ctx.dtype)
                # What was kept may be needed by a second backward, so it is not written over.
                raw = kept[number] if kept else h @ head.T
                narrow = torch.empty_like(raw)
                for part in _chunks(raw, len(weight), IN_CACHE):
                    here = slice(rows.start + part.start, rows.start + part.start + len(raw[part]))
                    z, slope = finish(raw[part], bias, ctx.scale, ctx.softcap)
                    p = (z - log_total[here, None]).exp_()
                    grad = p * -grad_logp[here, None]
                    grad.scatter_add_(-1, targets[here, None], grad_logp[here, None])
                    if sum_p2 is not None and grad_sum_p2 is not None:
                        grad += 2 * grad_sum_p2[here, None] * p * (p - sum_p2[here, None])
                    if slope is not None:
                        grad *= slope
                    grad *= ctx.scale
                    if grad_bias is not None:
                        grad_bias += grad.sum(0)
                    narrow[part] = grad
                if grad_hidden is not None:
                    grad_hidden[rows] = (narrow @ head).to(grad_hidden.dtype)
                if grad_weight is not None:
                    grad_weight += narrow.T @ h
        stored = (None if g is None else g.to(x.dtype) for g, x in zip(grads, (hidden, weight, bias), strict=True))
        return *stored, None, None, None, None, None, None


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _chunks(rows: Tensor, vocabulary: int, size: int) -> Iterator[slice]:
    step = max(1, size * (ON_CUDA if rows.is_cuda else 1) // vocabulary)
    return (slice(begin, begin + step) for begin in range(0, len(rows), step))
