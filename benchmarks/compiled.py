"""Does torch.compile pay for a step on the CPU? .venv/bin/python -m benchmarks.compiled

Each variant starts in a process of its own, with an empty cache of compiled code and with the filled one, and takes
eight steps of different sizes. Then one process takes the same step with each variant in turn. A step is forward and
backward of packed trees, float32; idle threads sleep, so that CPU seconds are work. Writes results/compiled.md.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface

from benchmarks import workload
from benchmarks.kernels import random_trees
from benchmarks.marks import RESULTS, ROOT, Facts, commit, hardware, peak_rss, spread
from prospect.engine.attention import NAME, attend
from prospect.engine.forest import Branches, pack
from prospect.engine.forward import forward
from prospect.engine.models import Policy, load

MODEL, TOKENS, TURNS = "42m-32k", 1000, 9
VARIANTS = {"eager": "as it is", "parts": "MLPs and norms compiled", "layers": "layers compiled, but for attention"}


def trees_of(tokens: int, seed: int) -> list[Branches]:
    """Pairs with prompts of 20 to 400 tokens and answers of 10 to 99, at least so many tokens in all."""
    rng = np.random.default_rng(seed)
    prompts: list[int] = []
    answers: list[list[int]] = []
    while sum(prompts) + sum(map(sum, answers)) < tokens:
        prompts.append(int(rng.integers(20, 401)))
        answers.append([int(n) for n in rng.integers(10, 100, 2)])
    return random_trees(prompts, answers)


def policy_of(variant: str) -> Policy:
    """The model, checked at load as ever and compiled after that."""
    policy = load(workload.model_folder(MODEL), precision="fp32", device="cpu")
    decoder: Any = policy.decoder
    if variant == "layers":
        AttentionInterface.register(NAME, torch.compiler.disable(attend))
    for layer in decoder.layers if variant != "eager" else ():
        parts = layer.mlp, layer.input_layernorm, layer.post_attention_layernorm
        for module in parts if variant == "parts" else (layer,):
            module.compile(dynamic=True)
    return policy


def step(policy: Policy, trees: list[Branches]) -> tuple[float, float, Tensor]:
    """Seconds of the clock and of the CPU, and log-probs."""
    policy.model.zero_grad(set_to_none=True)
    began, worked = time.perf_counter(), time.process_time()
    logp = forward(policy, trees).token_logp
    logp.sum().backward()
    return time.perf_counter() - began, time.process_time() - worked, logp.detach()


def start(variant: str) -> Facts:
    """Eight steps of a fresh process: the first, and what was compiled in the others."""
    policy = policy_of(variant)
    counters = torch._dynamo.utils.counters
    sizes = [trees_of(TOKENS + 60 * (k * 5 % 8), k) for k in range(8)]
    found: Facts = {"first": step(policy, sizes[0])[0]}
    found |= {"graphs": counters["stats"]["unique_graphs"], "breaks": sum(counters["graph_break"].values())}
    seconds = [step(policy, trees)[0] for trees in sizes[1:]]
    found |= {"tokens": [pack(trees).tokens for trees in sizes], "seconds": seconds, "peak_rss": peak_rss()}
    return found | {"recompiled": counters["stats"]["unique_graphs"] - found["graphs"]}


def in_process(part: str, cache: str) -> Facts:
    """`start` of a variant, or the turns, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.compiled", "--part", part]
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache, "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    print(part, done.stdout.splitlines()[-1], file=sys.stderr, flush=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def in_turn() -> Facts:
    """The same step with each, turn by turn; the speed-up is the median over turns of eager by variant."""
    policies = {variant: policy_of(variant) for variant in VARIANTS}
    trees = trees_of(TOKENS, 0)
    logp = {variant: [step(policy, trees)[2] for _ in range(2)][1] for variant, policy in policies.items()}
    took: dict[str, list[tuple[float, float]]] = {variant: [] for variant in VARIANTS}
    for turn in range(TURNS):
        for variant in list(VARIANTS)[:: 1 if turn % 2 else -1]:
            took[variant].append(step(policies[variant], trees)[:2])
    found: Facts = {"tokens": pack(trees).tokens}
    gradients = {
        variant: torch.cat([p.grad.flatten() for _, p in policy.trainable() if p.grad is not None])
        for variant, policy in policies.items()
    }
    truth = gradients["eager"]
    for variant, times in took.items():
        found[variant] = {}
        for k, kind in enumerate(("clock", "cpu")):
            ratios = [eager[k] / other[k] for eager, other in zip(took["eager"], times, strict=True)]
            found[variant] |= {kind: spread(pair[k] for pair in times), f"{kind}_speed_up": statistics.median(ratios)}
        found[variant] |= {"error_nats": float((logp[variant] - logp["eager"]).abs().max())}
        found[variant] |= {"gradient_error": float((gradients[variant] - truth).norm() / truth.norm())}
        with torch.no_grad():
            again = forward(policies[variant], trees).token_logp
        found[variant] |= {"no_grad_error_nats": float((again - logp[variant]).abs().max())}
    return found


def table(found: Facts) -> str:
    """Markdown."""
    where = ", ".join([found["hardware"]["processor"], *found["hardware"]["flags"]])
    lines = ["# torch.compile on the CPU", "", f"At {found['commit']}, torch {found['torch']}, {where},"]
    lines += [
        f"{found['threads']} threads that sleep while idle, load {found['hardware']['load_at_start']} at the start;"
    ]
    lines += [
        f"steps of {found['turns']['tokens']} packed tokens. Speed-ups are medians of eager / variant, turn by turn.",
        "",
    ]
    head = "| variant | first step cold s | warm s | graphs | breaks | recompiled in 7 more | peak MiB cold | warm |"
    lines += [head + " step min s | median s | speed-up | CPU min s | median s | speed-up | nats off | gradient off |"]
    lines += ["|---|" + "---:|" * 15]
    for name, title in VARIANTS.items():
        cold, warm, turn = (found[part][name] for part in ("cold", "warm", "turns"))
        cells = [f"{cold['first']:.1f}", f"{warm['first']:.1f}"]
        cells += [str(cold[key]) for key in ("graphs", "breaks", "recompiled")]
        cells += [f"{part['peak_rss'] / 2**20:,.0f}" for part in (cold, warm)]
        for kind in ("clock", "cpu"):
            cells += [*(f"{turn[kind][key]:.2f}" for key in ("min", "median")), f"{turn[f'{kind}_speed_up']:.2f}"]
        cells += [f"{turn['error_nats']:.1e}", f"{turn['gradient_error']:.1e}"]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Start each, then take turns."""
    if sys.argv[1:2] == ["--part"]:
        print(json.dumps(in_turn() if sys.argv[2] == "turns" else start(sys.argv[2])))
        return
    workload.ensure([MODEL])
    found: Facts = {"commit": commit(), "hardware": hardware(), "torch": torch.__version__}
    found |= {"threads": torch.get_num_threads(), "cold": {}, "warm": {}, "turns": {}}
    with tempfile.TemporaryDirectory() as cache:
        for variant in VARIANTS:
            found["cold"][variant] = in_process(variant, cache)
            found["warm"][variant] = in_process(variant, cache) if variant != "eager" else found["cold"][variant]
        found["turns"] = in_process("turns", cache)
    (RESULTS / "compiled.md").write_text(table(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
