"""The dtype that weights are stored in, which is seldom the one that they are trained in.

A model is trained in float32 and saved as its start model is stored: twice the size would hold nothing that the next
program reads. Checkpoints are another matter, they keep every bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from prospect.engine import folders
from prospect.errors import ModelError

SaveDtype = Literal["auto", "fp32", "bf16", "fp16"]

NAMED = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
IN_FILES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Floating point types by their names in safetensors files."""

Dtypes = dict[Tensor, torch.dtype]
"""What each parameter or buffer of a model is to be stored in."""


def stored_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """The dtypes of a folder's floating point tensors by name, and under "" the one that most numbers have. Raises
    ModelError for files that are damaged."""
    dtypes: dict[str, torch.dtype] = {}
    numbers: Counter[torch.dtype] = Counter()
    for file in folders.weight_files(folder):
        try:
            with safe_open(file, "pt") as tensors:
                for name in tensors.offset_keys():
                    tensor = tensors.get_slice(name)
                    if tensor.get_dtype() in IN_FILES:
                        dtypes[name] = IN_FILES[tensor.get_dtype()]
                        numbers[dtypes[name]] += torch.Size(tensor.get_shape()).numel()
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{file} is no complete safetensors file: {error}") from error
    return dtypes | {"": numbers.most_common(1)[0][0]} if numbers else {}


def dtypes_to_save(
    model: PreTrainedModel | PeftModel, stored: Mapping[str, torch.dtype], save_dtype: SaveDtype = "auto"
) -> Dtypes:
    """What to store a model's tensors in, by what those of its start model are `stored` in: each as it was, what is new
    (an adapter) as most numbers were; or all in `save_dtype`. Of an adapter only what is trained is stored.

    What has grown too large for float16 is kept in float32.
    """
    before = stored if save_dtype == "auto" else {"": NAMED[save_dtype]}
    chosen: Dtypes = {}
    for name, parameter in model.named_parameters():
        dtype = before.get(name, before.get(""))
        saved = parameter.requires_grad or not isinstance(model, PeftModel)
        if dtype is not None and saved and parameter.is_floating_point():
            fits = dtype != torch.float16 or bool(parameter.abs().max() <= torch.finfo(dtype).max)
            chosen[parameter] = dtype if fits else torch.float32
    return chosen | {buffer: before[name] for name, buffer in model.named_buffers() if name in before}


@contextmanager
def stored_as(dtypes: Mapping[Tensor, torch.dtype]) -> Iterator[None]:
    """Within it, the tensors are on the CPU in these dtypes; behind it, as they were."""
    held = {tensor: tensor.data for tensor in dtypes}
    try:
        for tensor, dtype in dtypes.items():
            tensor.data = tensor.data.to("cpu", dtype)
        yield
    finally:
        for tensor, data in held.items():
            tensor.data = data


@torch.no_grad()
def round_to(dtypes: Mapping[Tensor, torch.dtype]) -> None:
    """Give the tensors the values that these dtypes can hold: what is measured then is what is saved."""
    for tensor, dtype in dtypes.items():
        tensor.copy_(tensor.to(dtype))
