"""What a model is computed on and in: the device, the precision, the device's memory and its speed, and kernels of
other packages (`--kernels fused`, on CUDA).

liger-kernel          norms and gated activations of the layers, for the architectures that it knows
cut-cross-entropy     log-probs of targets without logits in memory, exact or not at all
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import inspect
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prospect.errors import ConfigError, MissingExtra, ModelError

Result = TypeVar("Result")

Precision = Literal["fp32", "bf16", "fp64"]

TRAINED_IN: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}
COMPUTED_IN: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
ROUNDING: dict[str, float] = {"fp64": 1e-9, "fp32": 1e-3, "bf16": 0.05}
"""Nats of a log-ratio that rounding alone may move: what lies nearer together is a tie. Without this the untrained
policy, whose log-ratios are 0 up to rounding, would be ranked by its rounding errors."""

PRODUCT_SIZE = {"cpu": 1536, "cuda": 8192}
"""Rows and columns of the matrices whose product is timed: large enough to be fast, small enough to be quick."""

OUT_OF_MEMORY = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")
"""Words of those plain RuntimeErrors of PyTorch that mean it, too."""


def pick_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises ConfigError for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        what = str(error).partition("\n")[0]
        raise ConfigError(f'cannot use the device "{device}": {what}. Expected auto, cpu, cuda or cuda:N') from error


def pick_precision(precision: Precision | Literal["auto"], device: torch.device) -> Precision:
    """`auto` is bf16 where the hardware multiplies it (CUDA, AMX, AVX512-BF16), else fp32."""
    if precision != "auto":
        if precision not in get_args(Precision):
            raise ConfigError(f'unknown precision "{precision}": expected auto, {", ".join(get_args(Precision))}')
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    # torch has no public name for these, and a version may lack one.
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported") if device.type == "cpu" else ()
    return "bf16" if any(getattr(torch.cpu, probe, bool)() for probe in probes) else "fp32"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device, or the host, has no memory left."""
    has_own_type = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return has_own_type or (isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY))


def within_memory(work: Callable[[], Result]) -> Result | None:
    """The result of `work`, None where memory ran out."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    return None


def release(device: torch.device) -> None:
    """Give back what a pass that ran out of memory has left: large batches leave blocks that small ones may not
    fill."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def must_fit(what: str) -> Iterator[None]:
    """Raises ModelError where memory runs out within it, saying that `what` does not fit."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(
            f"{what} does not fit into memory. Choose --precision bf16, a smaller model, --device cpu, or wait until "
            "others have left the device"
        ) from error


@lru_cache
def matmul_peak(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """FLOP/s of the fastest of a few square matrix products, measured once in a process."""
    size = size or PRODUCT_SIZE.get(device.type, PRODUCT_SIZE["cpu"])
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    seconds = []
    for _ in range(6):
        wait()
        began = time.perf_counter()
        torch.mm(a, b)
        wait()
        seconds.append(time.perf_counter() - began)
    return float(2 * size**3 / min(seconds[1:]))


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
