"""Can this model be trusted with trees? Three checks at load, since a model that cannot is wrong in silence.

    a  change the tokens of one branch: every other log-prob stays       state-space and linear attention leak
    b  two trees of three branches equal the padded oracle, also         attention sinks, chunked attention,
       where they are longer than any sliding window                     windows that get lost
    c  the chunked head equals the model's own logits                    logits that are scaled or otherwise finished

They run in float32 (float64 for a float64 model), on random tokens, with the weights as loaded. Since the kernels of
half precision do not, a fourth runs on CUDA in bfloat16: packed trees as they will be computed, near the exact ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from prospect.data.textids import Ids
from prospect.engine.device import is_out_of_memory, release
from prospect.engine.packing import Branches, forward_padded, forward_tree
from prospect.errors import ModelError

if TYPE_CHECKING:
    from prospect.engine.policy import Policy

Engine = Literal["auto", "tree", "padded"]

TOLERANCE = {"fp64": 1e-9, "fp32": 1e-4, "bf16": 0.5}
"""In nats per token. The last is for models that fit the device in half precision only, where rounding alone moves a
log-prob by a tenth."""
BUDGET = {"cpu": 10**12, "cuda": 10**15}
"""Parameters times tokens that looking past a window may cost: half a minute at most, nothing for small models."""
SHORT = 9
ALTERED = 1


def choose_path(policy: Policy, engine: Engine = "auto") -> None:
    """Run the checks and set `path`, `path_reason`, `chunked_head` and `checked_length` of the policy.

    Where memory runs out, windows are not looked past: that is no failed check. Raises ModelError where the user
    insists on "tree" and a check fails, and where the model gives NaN.
    """
    window = _window(policy)
    # The long tree is three long rows for the oracle and, twice, a little more than one when packed.
    if 5 * window * policy.parameters > BUDGET.get(policy.device.type, BUDGET["cpu"]):
        policy.checked_length = window
    try:
        _choose_path(policy, engine)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or not 0 < window < policy.checked_length:
            raise
        release(policy.device)
        policy.checked_length = window
        _choose_path(policy, engine)


def _choose_path(policy: Policy, engine: Engine) -> None:
    """`choose_path` with trees as long as `checked_length` asks for."""
    with torch.no_grad(), _exact(policy) as tolerance:
        head_problem = _check_head(policy, tolerance)
        problem = "padded as asked for" if engine == "padded" else _check_trees(policy, tolerance)
    if not problem and _in_half(policy):
        problem = _check_half(policy)
    if engine == "tree" and problem:
        raise ModelError(f"{policy.architecture} cannot run on trees: {problem}. Leave the choice to --engine auto")
    policy.path = "padded" if problem else "tree"
    beyond = policy.path == "tree" and policy.checked_length < policy.context
    note = f"padded beyond the attention window of {policy.checked_length} tokens, which costs too much to check"
    policy.path_reason = "; ".join(filter(None, (problem, head_problem, note if beyond else "")))


def require_same(policy: Policy, change: Callable[[], None], what: str) -> None:
    """Make a change to the model that should move no log-prob. Raises ModelError where it does."""
    with torch.no_grad(), _exact(policy) as tolerance:
        trees = _trees(policy, SHORT)
        before = forward_padded(policy, trees).token_logp
        change()
        off = _distance(forward_padded(policy, trees).token_logp, before)
    if not off <= tolerance:
        raise ModelError(f"{what} move the log-probs of {policy.architecture} by {off:.2g} nats: use --kernels torch")


def _check_head(policy: Policy, tolerance: float) -> str:
    """Sets `chunked_head`. Returns what is wrong with it, or nothing."""
    logp, problem = [], ""
    for policy.chunked_head in (True, False):
        try:
            logp.append(forward_padded(policy, _trees(policy, SHORT)).token_logp)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            if not policy.chunked_head:
                raise ModelError(
                    f"{policy.architecture} cannot be run: {type(error).__name__}: {error}. Prospect trains causal "
                    "language models that transformers runs on input_ids and an attention_mask"
                ) from error
            problem = f"full logits, since the head alone raises {type(error).__name__}: {error}"
    if logp[-1].isnan().any():
        raise ModelError(
            f"{policy.name or policy.architecture} gives NaN for ordinary tokens before any training: "
            f"{nan_source(policy)}. Take an intact copy of the model"
        )
    if problem:
        return problem
    off = _distance(*logp)
    policy.chunked_head = off <= tolerance
    return "" if policy.chunked_head else f"full logits, since the head alone is {off:.2g} nats off the model's own"


def _check_trees(policy: Policy, tolerance: float) -> str:
    """What is wrong with trees, or nothing. Whatever a model raises when it meets a packed row is an answer, too."""
    trees = _trees(policy, _longest_check(policy))
    # Tree by tree, or the oracle would pad the short one to the long one.
    padded = torch.cat([forward_padded(policy, [tree]).token_logp for tree in trees])
    try:
        packed = forward_tree(policy, trees)
        altered = forward_tree(policy, _alter(policy, trees)).token_logp
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return f"a packed row raises {type(error).__name__}: {error}"
    off = _distance(packed.token_logp, padded)
    begin, end = packed.offsets[ALTERED : ALTERED + 2].tolist()
    altered[begin:end] = packed.token_logp[begin:end]
    leak = _distance(packed.token_logp, altered)
    if not leak <= tolerance:
        return f"the tokens of one branch move another's log-probs by {leak:.2g} nats"
    return "" if off <= tolerance else f"packed trees are {off:.2g} nats off the padded rows"


def _in_half(policy: Policy) -> bool:
    """Whether the policy computes with kernels that float32 does not use."""
    return policy.device.type == "cuda" and policy.precision == "bf16"


@torch.no_grad()
def _check_half(policy: Policy) -> str:
    """What is wrong with the kernels of half precision, or nothing. By the mean: rounding alone makes a few large."""
    trees = _trees(policy, _longest_check(policy))
    with _exact(policy):
        exact = forward_tree(policy, trees).token_logp
    try:
        rounded = forward_tree(policy, trees).token_logp
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return f"a packed row in bfloat16 raises {type(error).__name__}: {error}"
    off = float((rounded - exact).abs().mean())
    return "" if off <= TOLERANCE["bf16"] else f"packed trees in bfloat16 are {off:.2g} nats off those in float32"


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference; NaN, which passes no check, where either has one."""
    return float((a - b).abs().max())


def _trees(policy: Policy, long: int) -> list[Branches]:
    """A short tree, then one with a prompt of `long` tokens: behind another tree no token stands at its position."""
    rng = np.random.default_rng(0)

    def ids(length: int) -> Ids:
        return rng.integers(policy.head.vocabulary, size=length, dtype=np.int32)

    return [Branches(ids(prompt), tuple(ids(c) for c in (4, 7, 2))) for prompt in (5, long)]


def _alter(policy: Policy, trees: list[Branches]) -> list[Branches]:
    """Other tokens in the second branch: what leaks goes to those behind it and spares those before."""
    completions = list(trees[0].completions)
    completions[ALTERED] = (completions[ALTERED] + 1) % policy.head.vocabulary
    return [replace(trees[0], completions=tuple(completions)), *trees[1:]]


def _longest_check(policy: Policy) -> int:
    """Tokens of the longer prompt: beyond any window where that can be paid for."""
    window = _window(policy)
    return window + SHORT if policy.checked_length > window else SHORT


def _window(policy: Policy) -> int:
    """The largest size below the context that the config gives to a window or chunk of positions; 0 for none."""
    config = policy.base.config.get_text_config().to_dict()
    sizes = (size for name, size in config.items() if "window" in name or "chunk" in name)
    return max((size for size in sizes if isinstance(size, int) and size < policy.context), default=0)


@contextmanager
def _exact(policy: Policy) -> Iterator[float]:
    """No autocast, and weights in float32 at least as far as memory allows. Yields the tolerance for what it got."""
    precision = policy.precision
    narrow = {p: p.dtype for p in policy.model.parameters() if p.dtype in (torch.bfloat16, torch.float16)}
    if narrow and not _widen(narrow, policy.device):
        yield TOLERANCE["bf16"]
        return
    policy.precision = "fp32" if precision == "bf16" else precision
    try:
        yield TOLERANCE[policy.precision]
    finally:
        _restore(narrow)
        policy.precision = precision


def _widen(narrow: Mapping[nn.Parameter, torch.dtype], device: torch.device) -> bool:
    """Turn parameters into float32; False, and nothing has changed, where there is no memory for it."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if free < 8 * sum(p.numel() for p in narrow):
            return False
    try:
        for parameter in narrow:
            parameter.data = parameter.data.float()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        _restore(narrow)
        release(device)
        return False
    return True


def _restore(narrow: Mapping[nn.Parameter, torch.dtype]) -> None:
    for parameter, dtype in narrow.items():
        parameter.data = parameter.data.to(dtype)


def nonfinite_tensors(model: nn.Module) -> list[str]:
    """The names of the parameters that hold NaN or an infinity."""
    return [name for name, p in model.named_parameters() if p.is_floating_point() and not p.isfinite().all()]


@torch.no_grad()
def nan_source(policy: Policy) -> str:
    """Where the NaN of a model come from, in words: tensors that hold some, else the first module that makes one."""
    names = nonfinite_tensors(policy.model)
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return f"NaN or infinity in its {'tensors' if len(names) > 1 else 'tensor'} {', '.join(names[:3])}{more}"
    first: list[str] = []

    def look(name: str, _: nn.Module, __: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        if not first and isinstance(states, torch.Tensor) and states.is_floating_point() and states.isnan().any():
            first.append(name)

    hooks = [m.register_forward_hook(partial(look, name)) for name, m in policy.model.named_modules() if name]
    try:
        forward_padded(policy, _trees(policy, SHORT))
    finally:
        for hook in hooks:
            hook.remove()
    where = f"the first to make one is its module {first[0]}" if first else "ordinary tokens give none"
    return f"all its tensors are finite, and {where}"
