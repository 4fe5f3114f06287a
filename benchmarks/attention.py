"""Attention in blocks beside PyTorch's fused kernel: python -m benchmarks.attention. One thread, processor time.

What prospect/engine/attention.py rests on. The fused kernel gets the same segments as one rectangle.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from prospect.engine import attention
from prospect.engine.attention import Scoring, attend_blocks
from prospect.engine.packing import Span
from prospect.training.process import settle


def milliseconds(attend: Callable[[], Tensor], pull: Tensor, times: int = 5) -> float:
    """The least processor time of forward and backward together."""
    seconds = []
    for _ in range(times):
        began = time.process_time()
        attend().backward(pull)
        seconds.append(time.process_time() - began)
    return 1e3 * min(seconds)


def main() -> None:
    """A table: segments and their keys, both times, their ratio, and blocks of one segment each."""
    settle()
    torch.set_num_threads(1)
    attention.FUSED = 1 << 30  # blocks at any length
    together = attention.TOGETHER
    print("dtype     segments  keys  fused ms  blocks ms  ratio  one by one ms")
    for dtype in (torch.bfloat16, torch.float32):
        scoring = Scoring(dtype, 64**-0.5)
        for count, keys in ((32, 25), (16, 30), (8, 60), (4, 150), (4, 300), (2, 600), (1, 1000), (1, 2000), (1, 4000)):
            spans = [Span(0, 0, k * keys, keys) for k in range(count)]
            flat = [torch.randn(1, 8, count * keys, 64, dtype=dtype, requires_grad=True) for _ in range(3)]
            rows = [torch.randn(count, 8, keys, 64, dtype=dtype, requires_grad=True) for _ in range(3)]

            def fused(rows: list[Tensor] = rows) -> Tensor:
                return scaled_dot_product_attention(rows[0], rows[1], rows[2], is_causal=True)

            def blocks(flat: list[Tensor] = flat, spans: list[Span] = spans, scoring: Scoring = scoring) -> Tensor:
                return attend_blocks(flat[0], flat[1], flat[2], spans, scoring)

            a = milliseconds(fused, torch.randn(count, 8, keys, 64).to(dtype))
            b = milliseconds(blocks, torch.randn(1, count * keys, 8, 64).to(dtype))
            attention.TOGETHER = 1
            c = milliseconds(blocks, torch.randn(1, count * keys, 8, 64).to(dtype))
            attention.TOGETHER = together
            print(f"{str(dtype)[6:]:8s}  {count:8d}  {keys:4d}  {a:8.1f}  {b:9.1f}  {a / b:5.2f}  {c:13.1f}")


if __name__ == "__main__":
    main()
