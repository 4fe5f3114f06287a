"""Plain attention beside the fused kernel in bfloat16: python -m benchmarks.attention. One thread, processor time.

What `PLAIN_KEYS` in prospect/engine/attention.py rests on.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from prospect.engine.attention import Plain


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
    print("rows  keys  fused ms  plain ms  ratio")
    for rows, keys in ((8, 60), (4, 150), (4, 300), (2, 600), (1, 1000)):
        q, k, v = (torch.randn(rows, 8, keys, 64, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
        mask, pull = torch.ones(keys, keys, dtype=torch.bool).tril(), torch.randn(rows, 8, keys, 64).bfloat16()

        def fused(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Tensor:
            return scaled_dot_product_attention(q, k, v, is_causal=True)

        def plain(q: Tensor = q, k: Tensor = k, v: Tensor = v, mask: Tensor = mask) -> Tensor:
            found: Tensor = Plain.apply(q, k, v, mask, 64**-0.5)
            return found

        a, b = milliseconds(fused, pull), milliseconds(plain, pull)
        print(f"{rows:4d}  {keys:4d}  {a:8.1f}  {b:8.1f}  {a / b:5.2f}")


if __name__ == "__main__":
    main()
