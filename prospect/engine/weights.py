"""The dtype that weights are stored in, which is seldom the one that they are trained in.

A model is trained in float32 and saved as its start model is stored: twice the size would hold nothing that the next
program reads. Checkpoints are another matter, they keep every bit.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from prospect.data import store
from prospect.data.tokens import Encoder
from prospect.engine import folders
from prospect.engine.policy import Policy
from prospect.errors import ModelError, RunError

SaveDtype = Literal["auto", "fp32", "bf16", "fp16"]

NAMED = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
IN_FILES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Floating point types by their names in safetensors files."""

RESIZED = "has_embeddings_of_its_adapter"
"""The attribute of a base whose embeddings are its adapter's, with which they must be saved."""

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


@contextmanager
def without_bars() -> Iterator[None]:
    """transformers' bars for reading and writing files say nothing that a user waits for."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def save(policy: Policy, folder: str | Path, *, dtype: SaveDtype = "auto", ends: Iterable[int] = ()) -> None:
    """Write the policy as a model folder (of an adapter: an adapter folder) with its tokenizer, chat template and
    generation config. Tensors are stored as the start model's are, or in `dtype`; the generation config keeps the start
    model's values and learns which tokens end an answer: `ends` and the chat template's. What stood there is replaced,
    and only by the whole.

    Raises RunError where the disk fails; then nothing has changed.
    """
    if policy.tokenizer is not None:
        ends = (*ends, *Encoder(policy.tokenizer).end_of_turn_ids)
    write(
        policy.model,
        policy.tokenizer,
        Path(folder),
        dtypes=dtypes_to_save(policy.model, policy.stored, dtype),
        generation=generation_values(policy.base, policy.folder, ends),
    )


def write(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    *,
    dtypes: Dtypes | None = None,
    generation: Mapping[str, Any] | None = None,
) -> None:
    """Write a folder that `read_*` reads: into a folder beside it first, which then takes its name. Tensors are stored
    in `dtypes`, where they are named there; `generation` is what generation_config.json will say.

    Raises RunError where the disk fails; then nothing has changed.
    """
    try:
        with store.replacing_folder(folder) as part, stored_as(dtypes or {}):
            _write(model, tokenizer, part, generation)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"cannot write the model to {folder}: {error}. Free some space or choose another folder"
        ) from error


def _write(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    generation: Mapping[str, Any] | None,
) -> None:
    base = cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
    own = base.generation_config
    try:
        # Some published ones load and are refused when they are saved. Ours is written by ourselves.
        base.generation_config = GenerationConfig()
        with without_bars():
            if isinstance(model, PeftModel):
                # peft would ask the Hub whether the base's vocabulary grew, and leave a model card without content.
                model.save_pretrained(str(folder), save_embedding_layers=getattr(base, RESIZED, False))
                (folder / "README.md").unlink(missing_ok=True)
            else:
                model.save_pretrained(folder)
    finally:
        base.generation_config = own
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    path = folder / "generation_config.json"
    if generation is None:
        path.unlink(missing_ok=True)
    else:
        path.write_text(json.dumps(generation, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def generation_values(model: PreTrainedModel, folder: Path | None, ends: Iterable[int]) -> dict[str, Any] | None:
    """What generation_config.json should say: what the start folder's says, or else what transformers makes of the
    model's config, and that an answer also ends with `ends`. None for a model without."""
    if model.generation_config is None:
        return None
    values: dict[str, Any] = model.generation_config.to_diff_dict()
    if folder is not None and (folder / "generation_config.json").exists():
        values = folders.read_json(folder / "generation_config.json")
    before = values.get("eos_token_id")
    ids = before if isinstance(before, list) else [] if before is None else [before]
    every = list(dict.fromkeys([*ids, *ends]))
    if every != ids:
        values["eos_token_id"] = every[0] if len(every) == 1 else every
    return values
