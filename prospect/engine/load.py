"""Model folders to models and back, through transformers and peft: safetensors, whole weights, no foreign code."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from prospect.engine import folders
from prospect.engine.weights import Dtypes, stored_as
from prospect.errors import ModelError, ProspectError, RunError

RESIZED = "has_embeddings_of_its_adapter"
"""The attribute of a base whose embeddings are its adapter's, with which they must be saved."""


def read_model(folder: Path, dtype: torch.dtype | Literal["auto"]) -> PreTrainedModel:
    """A causal language model with every weight its config asks for; "auto" is the dtype it is stored in."""
    _require_whole_weights(folder)
    with loading(str(folder)), without_bars():
        network, report = cast(Any, AutoModelForCausalLM).from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    lacking = sorted([*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])])
    if lacking:
        raise ModelError(
            f"the weights in {folder} are incomplete or of another shape than its config says: {len(lacking)} tensors, "
            f"such as {lacking[0]}. Take the folder of a whole model that was saved with save_pretrained"
        )
    if network.get_output_embeddings() is None:
        raise ModelError(
            f"{folder} holds {type(network).__name__}, which has no output embeddings to predict tokens with"
        )
    return cast(PreTrainedModel, network)


def _require_whole_weights(folder: Path) -> None:
    try:
        config = folders.read_json(folder / "config.json")
    except ModelError:  # which transformers will explain
        return
    quantised = config.get("quantization_config") or config.get("compression_config")
    if not quantised:
        return
    method = quantised.get("quant_method", "unknown method") if isinstance(quantised, dict) else "unknown method"
    raise ModelError(
        f"the weights in {folder} are quantised ({method}), and Prospect trains, measures and merges whole ones. Take "
        "the model that they were made from; for an adapter, name it in adapter_config.json as base_model_name_or_path"
    )


def read_adapter(base: PreTrainedModel, folder: Path, *, trainable: bool) -> PeftModel:
    """`base` with the LoRA layers of an adapter folder inside, and with as many embeddings as the adapter has."""
    kind = folders.read_json(folder / "adapter_config.json").get("peft_type")
    if kind != "LORA":
        raise ModelError(f"{folder} is an adapter of type {kind}; only LoRA adapters are supported")
    _resize_embeddings(base, folder)
    try:
        with without_warnings():
            whole = PeftModel.from_pretrained(base, folder, is_trainable=trainable)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"peft cannot load the adapter {folder}: {error}") from error
    return whole


def _resize_embeddings(base: PreTrainedModel, adapter: Path) -> None:
    """Make room for the tokens that an adapter was trained with and its base has not. Their embeddings, and the head's
    rows where these are others, must be in the adapter: raises ModelError where they are not."""
    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    rows = {name: _rows_in(adapter, base, part) for name, part in (("embeddings", embeddings), ("head", head))}
    sizes = {size for size in rows.values() if size is not None} - {cast(Any, embeddings).weight.shape[0]}
    if not sizes:
        return
    tied = cast(Any, head).weight is cast(Any, embeddings).weight
    if len(sizes) > 1 or not (tied or rows["embeddings"] == rows["head"]):
        raise ModelError(
            f"the adapter {adapter} has {rows['embeddings'] or 'no'} embeddings and {rows['head'] or 'no'} rows of the "
            f"head, its base {cast(Any, embeddings).weight.shape[0]} of each: what lacks cannot be made up. Save the "
            "adapter again with save_embedding_layers=True"
        )
    base.resize_token_embeddings(sizes.pop(), mean_resizing=False)
    setattr(base, RESIZED, True)


def _rows_in(adapter: Path, base: PreTrainedModel, part: nn.Module | None) -> int | None:
    """How many rows an adapter folder's whole matrix for a module of its base has, None where it has none."""
    (name,) = (name for name, module in base.named_modules() if module is part)
    for file in folders.weight_files(adapter):
        try:
            with safe_open(file, "pt") as tensors:
                for key in tensors.offset_keys():
                    if key.startswith(f"base_model.model.{name}.") and key.endswith(".weight") and "lora_" not in key:
                        return int(tensors.get_slice(key).get_shape()[0])
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{file} is no complete safetensors file: {error}") from error
    return None


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Whatever transformers or peft raise of a folder is a ModelError: a broken file has many ways to trip them."""
    try:
        yield
    except (ProspectError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        said = str(error).strip()
        raise ModelError(f"transformers cannot load {what}: {said or type(error).__name__}") from error


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


@contextmanager
def without_warnings() -> Iterator[None]:
    """What peft and transformers warn of here is between them: old names, settings that peft corrects by itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(peft|transformers)\.")
        yield


def read_tokenizer(*candidates: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in the first folder that has one."""
    for folder in candidates:
        if any((folder / name).exists() for name in ("tokenizer_config.json", "tokenizer.json")):
            with loading(f"the tokenizer in {folder}"):
                tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            return cast(PreTrainedTokenizerBase, tokenizer)
    raise ModelError(f"{candidates[-1]} has no tokenizer: expected tokenizer.json and tokenizer_config.json")


def to_dtype(parameters: Iterable[nn.Parameter], dtype: torch.dtype) -> None:
    """Cast in place: optimizers and tied modules keep their parameters."""
    for parameter in parameters:
        parameter.data = parameter.data.to(dtype)


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
    partial = folder.with_name(f".{folder.name}.partial")
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)  # what another process was killed at
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        with stored_as(dtypes or {}):
            _write(model, tokenizer, partial, generation)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    except (OSError, SafetensorError) as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise RunError(
            f"cannot write the model to {folder}: {error}. Free some space or choose another folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


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
    known = before if isinstance(before, list) else [] if before is None else [before]
    every = list(dict.fromkeys([*known, *ends]))
    if every != known:
        values["eos_token_id"] = every[0] if len(every) == 1 else every
    return values
