"""Plain attention beside the fused kernel: python -m benchmarks.attention. One thread, processor time.

What `PLAIN_KEYS` in prospect/engine/plain.py rests on.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from prospect.engine.pages import keep_freed
from prospect.engine.plain import plain_attention


def milliseconds(attend: Callable[[], Tensor], pull: Tensor, times: int = 5) -> float:
    """The least processor time of forward and backward together."""
    found = []
    for _ in range(times):
        began = time.process_time()
        attend().backward(pull)
        found.append(time.process_time() - began)
    return 1e3 * min(found)


def main() -> None:
    """A table: rows of keys, both times, and their ratio."""
    torch.set_num_threads(1)
    keep_freed()
    print("dtype     rows  keys  fused ms  plain ms  ratio")
    for dtype in (torch.bfloat16, torch.float32):
        for rows, keys in ((16, 30), (8, 60), (4, 150), (4, 300), (2, 600), (1, 1000)):
            shape = (rows, 8, keys, 64)
            q, k, v = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))
            pull = torch.randn(shape).to(dtype)

            def fused(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Tensor:
                return scaled_dot_product_attention(q, k, v, is_causal=True)

            def plain(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Tensor:
                return plain_attention(q, k, v, None, 64**-0.5)

            a, b = milliseconds(fused, pull), milliseconds(plain, pull)
            print(f"{str(dtype)[6:]:8s}  {rows:4d}  {keys:4d}  {a:8.1f}  {b:8.1f}  {a / b:5.2f}")


if __name__ == "__main__":
    main()
