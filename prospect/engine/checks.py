"""Can this model be trusted with trees? Three checks at load, because a model that cannot gives wrong numbers in silence.

    a  change the tokens of one branch: every other log-prob stays as it is        state-space and linear attention leak
    b  two trees of three branches equal the padded oracle, also past any window   sinks, chunked attention, lost windows
    c  the chunked head equals the model's own logits                              scaled or otherwise finished logits

They run in float32 (float64 for a float64 model), on random tokens from a fixed seed, with the weights as loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from prospect.engine.forest import Branches, Ids
from prospect.engine.forward import forward_tree
from prospect.engine.padded import forward_padded
from prospect.errors import ModelError

if TYPE_CHECKING:
    from prospect.engine.models import Policy

TOLERANCE = {"fp64": 1e-9, "fp32": 1e-4, "bf16": 0.5}
"""In nats per token. The last is for models that do not fit the device in float32: rounding moves a log-prob by a tenth."""
BUDGET = {"cpu": 10**12, "cuda": 10**15}
"""Parameters times tokens that looking past a window may cost: half a minute at most, no time at all for small models."""
SHORT = 9
ALTERED = 1


def choose_path(policy: Policy, engine: Literal["auto", "tree", "padded"] = "auto") -> None:
    """Run the checks and set `path`, `path_reason`, `chunked_head` and `checked_length` of the policy.

    Raises ModelError where the user insists on "tree" and a check fails.
    """
    with torch.no_grad(), _exact(policy) as tolerance:
        head_problem = _check_head(policy, tolerance)
        problem = "asked for" if engine == "padded" else _check_trees(policy, tolerance)
    if engine == "tree" and problem:
        raise ModelError(f"{policy.architecture} cannot run on trees: {problem}. Leave the choice to --engine auto")
    policy.path = "padded" if problem else "tree"
    policy.path_reason = "; ".join(filter(None, (problem, head_problem)))


def _check_head(policy: Policy, tolerance: float) -> str:
    """Sets `chunked_head`; says what is wrong with it, or nothing."""
    logp = []
    for chunked in (True, False):
        policy.chunked_head = chunked
        logp.append(forward_padded(policy, _trees(policy, SHORT)).token_logp)
    off = _distance(*logp)
    policy.chunked_head = off <= tolerance
    return "" if policy.chunked_head else f"full logits, since W h + b is {off:.2g} nats off the model's own"


def _check_trees(policy: Policy, tolerance: float) -> str:
    """What is wrong with trees, or nothing. Whatever a model raises when it meets a packed row is an answer, too."""
    window = _window(policy)
    # The long tree is three rows for the oracle and a little over one when packed.
    affordable = 5 * (window + SHORT) * policy.parameters <= BUDGET.get(policy.device.type, BUDGET["cpu"])
    if not affordable:
        policy.checked_length = window
    trees = _trees(policy, window + SHORT if affordable else SHORT)
    # The oracle takes tree by tree, or it would pad the short one to the long one.
    padded = torch.cat([forward_padded(policy, [tree]).token_logp for tree in trees])
    try:
        packed = forward_tree(policy, trees)
        altered = forward_tree(policy, _alter(policy, trees))
    except Exception as error:  # noqa: BLE001
        return f"a packed row raises {type(error).__name__}: {error}"
    begin, end = packed.offsets[ALTERED : ALTERED + 2].tolist()
    others = [torch.cat([o.token_logp[:begin], o.token_logp[end:]]) for o in (packed, altered)]
    leak, off = _distance(*others), _distance(packed.token_logp, padded)
    if not leak <= tolerance:
        return f"the tokens of one branch move another's log-probs by {leak:.2g} nats"
    return "" if off <= tolerance else f"packed trees are {off:.2g} nats off the padded rows"


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference; NaN where either has one, which passes no check."""
    return float((a - b).abs().max())


def _trees(policy: Policy, long: int) -> list[Branches]:
    """A short tree, then one whose prompt has `long` tokens: there no token's place in the row is its position."""
    rng = np.random.default_rng(0)

    def ids(length: int) -> Ids:
        return rng.integers(policy.vocabulary, size=length, dtype=np.int32)

    return [Branches(ids(p), tuple(ids(c) for c in (4, 7, 2))) for p in (5, long)]


def _alter(policy: Policy, trees: list[Branches]) -> list[Branches]:
    """The same with other tokens in one branch: the second, since what leaks from a branch leaks to those behind it."""
    first = trees[0]
    completions = list(first.completions)
    completions[ALTERED] = (completions[ALTERED] + 1) % policy.vocabulary
    return [replace(first, completions=tuple(completions)), *trees[1:]]


def _window(policy: Policy) -> int:
    """The largest number in the config that names a window or a chunk of positions smaller than the context; 0 for none."""
    config = policy.base.config.get_text_config().to_dict()
    sizes = (v for k, v in config.items() if ("window" in k or "chunk" in k) and isinstance(v, int))
    return max((size for size in sizes if size < policy.context), default=0)


@contextmanager
def _exact(policy: Policy) -> Iterator[float]:
    """Without autocast, weights in float32 at least, as far as memory allows. Yields the tolerance that this allows."""
    narrow = [p for p in policy.model.parameters() if p.dtype in (torch.bfloat16, torch.float16)]
    stored = [p.dtype for p in narrow]
    precision = policy.precision
    if narrow and policy.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(policy.device)
        if free < 8 * sum(p.numel() for p in narrow):
            yield TOLERANCE[precision]
            return
    policy.precision = "fp32" if precision == "bf16" else precision
    try:
        for p in narrow:
            p.data = p.data.float()
        yield TOLERANCE[policy.precision]
    finally:
        for p, dtype in zip(narrow, stored, strict=True):
            p.data = p.data.to(dtype)
        policy.precision = precision
