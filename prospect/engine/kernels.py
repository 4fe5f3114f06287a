"""Kernels of other packages behind the engine's own seams: `--kernels fused`, on CUDA.

liger-kernel          norms and gated activations of the layers, for the architectures that it knows
cut-cross-entropy     log-probs of targets without logits in memory, exact or not at all
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import sys
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prospect.errors import ConfigError, MissingExtra

Kernels = Literal["torch", "fused"]

PARTS = {"rms_norm": True, "swiglu": True, "geglu": True}
"""What liger replaces. Rotations stay: liger swaps them for a whole module of transformers, not for one model."""
NOT_ITS_HEAD = {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}


def pick_kernels(kernels: Kernels | Literal["auto"], device: torch.device) -> Kernels:
    """`auto` is torch. Raises ConfigError for "fused" off CUDA, MissingExtra where a package is not installed."""
    if kernels != "fused":
        return "torch"
    if device.type != "cuda":
        raise ConfigError(f"--kernels fused runs on CUDA only, and this is {device.type}: use --kernels torch")
    for module, package in (("liger_kernel", "liger-kernel"), ("cut_cross_entropy", "cut-cross-entropy")):
        if importlib.util.find_spec(module) is None:
            raise MissingExtra(package, "fused", "--kernels fused")
    return kernels


def into_layers(model: PreTrainedModel) -> None:
    """Give this model liger's norms and activations; what its class is made of stays as it was, for other models."""
    from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance

    definitions = vars(sys.modules[type(model).__module__])
    before = dict(definitions)
    _apply_liger_kernel_to_instance(model=model, **PARTS, **NOT_ITS_HEAD)
    definitions.update(before)


def head_suits(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, dtype: torch.dtype) -> bool:
    """Whether `head_logp` gives what the chunked head would, gradients included.

    The kernel takes half precision without bias; a scale can only be multiplied into the hidden states where that
    rounds nothing, by a power of two. Version 25.1 sums gradients in bfloat16: it is asked only where none is wanted.
    """
    trains = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    whole = abs(math.frexp(scale)[0]) == 0.5
    return dtype in (torch.bfloat16, torch.float16) and bias is None and whole and (not trains or _sums_exactly())


def head_logp(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, scale: float, softcap: float | None, dtype: torch.dtype
) -> Tensor:
    """Log-probs (M,) in nats, float32, of targets (M,) given hidden (M, H) and weight (V, H), as in logprobs.py."""
    # Blocks of small gradients are not skipped: what is too small alone adds up over a vocabulary.
    exact: dict[str, Any] = {"accum_e_fp32": True, "accum_c_fp32": True} if _sums_exactly() else {}
    with torch.autocast(hidden.device.type, enabled=False):
        loss: Tensor = _cross_entropy()(
            (hidden if scale == 1.0 else hidden * scale).to(dtype),
            weight.to(dtype),
            targets,
            softcap=softcap,
            reduction="none",
            filter_eps=None,
            **exact,
        )
    return -loss.float()


def _cross_entropy() -> Any:
    return importlib.import_module("cut_cross_entropy").linear_cross_entropy


@lru_cache
def _sums_exactly() -> bool:
    return "accum_c_fp32" in inspect.signature(_cross_entropy()).parameters
