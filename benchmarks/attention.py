"""Attention in spans beside PyTorch's fused kernel: python -m benchmarks.attention. One thread, processor time.

What prospect/engine/spans.py rests on. The fused kernel gets the same segments as one rectangle, without any padding.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from prospect.engine.gather import Span, Spans
from prospect.engine.pages import keep_freed, limit_caches
from prospect.engine.spans import How, attend_spans


def milliseconds(attend: Callable[[], Tensor], pull: Tensor, times: int = 5) -> float:
    """The least processor time of forward and backward together."""
    found = []
    for _ in range(times):
        began = time.process_time()
        attend().backward(pull)
        found.append(time.process_time() - began)
    return 1e3 * min(found)


def main() -> None:
    """A table: segments and their keys, both times, and their ratio."""
    torch.set_num_threads(1)
    keep_freed()
    limit_caches()
    print("dtype     segments  keys  fused ms  spans ms  ratio")
    for dtype in (torch.bfloat16, torch.float32):
        how = How(dtype, 64**-0.5)
        for count, keys in ((16, 30), (8, 60), (4, 150), (4, 300), (2, 600), (1, 1000), (1, 2000), (1, 4000)):
            spans = Spans(tuple(Span(0, 0, k * keys, keys) for k in range(count)))
            flat = [torch.randn(1, 8, count * keys, 64, dtype=dtype, requires_grad=True) for _ in range(3)]
            rows = [torch.randn(count, 8, keys, 64, dtype=dtype, requires_grad=True) for _ in range(3)]

            def fused(rows: list[Tensor] = rows) -> Tensor:
                return scaled_dot_product_attention(rows[0], rows[1], rows[2], is_causal=True)

            def ours(flat: list[Tensor] = flat, spans: Spans = spans, how: How = how) -> Tensor:
                return attend_spans(flat[0], flat[1], flat[2], spans, how)

            a = milliseconds(fused, torch.randn(count, 8, keys, 64).to(dtype))
            b = milliseconds(ours, torch.randn(1, count * keys, 8, 64).to(dtype))
            print(f"{str(dtype)[6:]:8s}  {count:8d}  {keys:4d}  {a:8.1f}  {b:8.1f}  {a / b:5.2f}")


if __name__ == "__main__":
    main()
