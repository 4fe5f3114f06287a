"""Micro-benchmarks of single operations: the head, attention, the matmul peak, planning. Called by `micro`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.marks import Facts, peak_rss, spread
from prospect.data.schedule import balance, plan
from prospect.engine.attention import attend
from prospect.engine.device import COMPUTED_IN, matmul_peak, pick_precision
from prospect.engine.head import token_logp
from prospect.engine.packing import Branches, pack
from prospect.training.process import keep_freed_memory

HIDDEN, HEADS = 512, 8


def clock(work: Callable[[], Any], repeats: int = 5, warm: int = 1) -> Facts:
    """Seconds of `work`, after a warm-up."""
    for _ in range(warm):
        work()
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return spread(took)


def in_turn(ways: Mapping[str, Callable[[], Any]], repeats: int, warm: int = 1) -> dict[str, list[float]]:
    """Seconds of each way, taken in turn, so that a machine that drifts drifts for all."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(warm + repeats):
        for name, work in ways.items():
            began = time.perf_counter()
            work()
            if repeat >= warm:
                took[name].append(time.perf_counter() - began)
    return took


def native() -> torch.dtype:
    """What `--precision auto` computes in on this processor."""
    return COMPUTED_IN[pick_precision("auto", torch.device("cpu"))]


def peak(quick: bool) -> Facts:
    """The fastest matrix product of a few shapes, FLOP/s, for bf16 and fp32."""
    sizes = (1024,) if quick else (1024, 2048, 4096)
    kinds = {"bf16": torch.bfloat16, "fp32": torch.float32}
    cpu = torch.device("cpu")
    return {name: max(matmul_peak(cpu, dtype, size) for size in sizes) for name, dtype in kinds.items()}


def head(kind: str, vocabulary: int, tokens: int) -> Facts:
    """Forward and backward of `tokens` log-probs; run it in a process of its own for its memory."""
    torch.manual_seed(0)
    keep_freed_memory()
    dtype = native()
    hidden = torch.randn(tokens, HIDDEN, requires_grad=True)
    weight = (torch.randn(vocabulary, HIDDEN) * 0.02).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,))

    def ours() -> Tensor:
        return token_logp(hidden, weight, targets, compute_dtype=dtype)[0]

    def full() -> Tensor:
        logits = (hidden.to(dtype) @ weight.to(dtype).T).float()
        return logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]

    def fused() -> Tensor:
        product: Any = functional.linear_cross_entropy
        loss: Tensor = product(hidden.to(dtype), weight.to(dtype), targets, reduction="none")
        return -loss.float()

    work = {"ours": ours, "full logits": full, "linear_cross_entropy": fused}[kind]
    before = peak_rss()

    def both() -> None:
        hidden.grad = weight.grad = None
        work().sum().backward()

    with torch.no_grad():
        forward = clock(work, 3)
    all_of_it = clock(both, 3)
    rates = {"forward_rate": tokens / forward["median"], "both_rate": tokens / all_of_it["median"]}
    exact = functional.cross_entropy(hidden.detach()[:64] @ weight.detach().T, targets[:64], reduction="none")
    error = float((work()[:64].detach() + exact).abs().max())
    return rates | {"forward": forward, "both": all_of_it, "memory": peak_rss() - before, "error_nats": error}


def random_trees(prompts: Sequence[int], answers: Sequence[Sequence[int]], vocabulary: int = 32_000) -> list[Branches]:
    """Trees of these lengths."""
    rng = np.random.default_rng(0)

    def ids(count: int) -> Any:
        return rng.integers(2, vocabulary, count).astype(np.int32)

    return [Branches(ids(p), tuple(ids(a) for a in many)) for p, many in zip(prompts, answers, strict=True)]


def attention(trees: list[Branches], repeats: int) -> Facts:
    """Forward and backward of one layer's attention: trees packed, against one padded row per completion."""
    row = pack(trees)
    layer = torch.nn.Module()
    size = HIDDEN // HEADS

    def packed() -> None:
        q, k, v = (torch.randn(1, HEADS, row.tokens, size, dtype=native(), requires_grad=True) for _ in "qkv")
        attend(layer, q, k, v, None, segments=row.segments)[0].sum().backward()

    lengths = [len(t.prompt) + len(c) - 1 for t in trees for c in t.completions]
    shape = (len(lengths), HEADS, max(lengths), size)

    def padded() -> None:
        q, k, v = (torch.randn(shape, dtype=native(), requires_grad=True) for _ in "qkv")
        functional.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()

    took = in_turn({"tree": packed, "padded": padded}, repeats)
    slots = {"tokens": row.tokens, "padded_slots": shape[0] * shape[2]}
    ratio = spread(b / a for a, b in zip(took["tree"], took["padded"], strict=True))
    return slots | {name: spread(times) for name, times in took.items()} | {"ratio": ratio}


def planning(rows: int) -> Facts:
    """Seconds per row of planning an epoch, and of packing its steps' rows (a sample of them)."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 300, rows).tolist()
    names = [i.to_bytes(4, "big") for i in range(rows)]
    began = time.perf_counter()
    schedule = plan(names, lengths, lengths, batch_size=32, epochs=1, seed=0)
    steps = schedule.steps
    for step in steps:
        balance([lengths[i] for i in step.rows], 1, 4096)
    planned = time.perf_counter() - began
    few = steps[:30]
    samples = [random_trees([lengths[i] for i in s.rows], [[lengths[i]] for i in s.rows]) for s in few]
    began = time.perf_counter()
    for trees in samples:
        pack(trees)
    packed = time.perf_counter() - began
    return {"rows": rows, "plan": planned / rows, "pack": packed / sum(len(s.rows) for s in few)}
