"""What a model is trained and computed in, and where."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prospect.errors import ConfigError

Precision = Literal["fp32", "bf16", "fp64"]

TRAINED_IN: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}
COMPUTED_IN: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
ROUNDING: dict[str, float] = {"fp64": 1e-9, "fp32": 1e-3, "bf16": 0.05}
"""Nats of a log-ratio that rounding alone may move: what lies nearer together is a tie. Without this the untrained
policy, whose log-ratios are 0 up to rounding, would be ranked by its rounding errors."""


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


def computing_in(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """The context of a forward pass. In bf16 it is autocast, to be left before an optimizer steps, as it remembers the
    weights it has cast; in fp64 it keeps everything in float64."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    if precision == "fp64":
        return _AllDouble()  # type: ignore[no-untyped-call]
    return nullcontext()


class _AllDouble(TorchDispatchMode):
    """Drops casts from float64 to float32: models have them in norms and softmax, where they make a bfloat16 model more
    exact and would blur every proof of equality for a float64 one. Rotation tables stay float32, as constants may."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and kwargs.get("dtype") == torch.float32:
            kwargs = {**kwargs, "dtype": torch.promote_types(args[0].dtype, torch.float32)}
        return func(*args, **kwargs)
