"""Model folders to models and back, through transformers and peft: safetensors, whole weights, no foreign code."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
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
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prospect.data.tokens import Encoder
from prospect.engine import folders
from prospect.engine.checks import Engine, choose_path, require_same
from prospect.engine.device import (
    TRAINED_IN,
    Kernels,
    Precision,
    into_layers,
    must_fit,
    pick_device,
    pick_kernels,
    pick_precision,
)
from prospect.engine.policy import Policy
from prospect.engine.weights import RESIZED, stored_dtypes, without_bars
from prospect.errors import ModelError, ProspectError


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
        reason = str(error).strip()
        raise ModelError(f"transformers cannot load {what}: {reason or type(error).__name__}") from error


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


def load(
    model: str | Path,
    *,
    precision: Precision | Literal["auto"] = "auto",
    device: str = "auto",
    chat_template: str | None = None,
    engine: Engine = "auto",
    kernels: Kernels | Literal["auto"] = "auto",
    revision: str | None = None,
    frozen: bool = False,
    wide: bool | None = None,
    cache: str | Path | None = None,
) -> Policy:
    """Load a model or adapter folder, or a Hub name, and check which engine path it can be trusted with.

    All parameters (of an adapter: its own) are trainable and float32, in "fp64" float64. With `frozen`, for references,
    evaluation and what LoRA will adapt, none is, and in "bf16" they keep the dtype they are stored in. `wide` says
    otherwise: a reference is loaded as its policy is, since a model that adds up in bfloat16 is another model by 0.03
    nats a token. `chat_template`: None for the tokenizer's own, "plain", or a Jinja file. `cache` is where digests of
    files are kept, None for the usual place. Raises ModelError, ConfigError, MissingExtra.
    """
    folder = folders.find(model, revision)
    base_folder = folders.base_of(folder) if folders.is_adapter(folder) else folder
    adapted = base_folder != folder
    where = pick_device(device)
    kernels = pick_kernels(kernels, where)
    precision = pick_precision(precision, where)
    wide = precision != "bf16" or (not frozen and not adapted if wide is None else wide)
    base = read_model(base_folder, TRAINED_IN[precision] if wide else "auto").requires_grad_(not frozen and not adapted)
    network = read_adapter(base, folder, trainable=not frozen) if adapted else base
    to_dtype((p for p in network.parameters() if p.requires_grad), TRAINED_IN[precision])
    tokenizer = read_tokenizer(folder, base_folder)
    if chat_template is not None:
        Encoder(tokenizer, chat_template)
    name = str(folder) if folders.local(model).exists() else str(model)
    with must_fit(f"{model} on {where}"):
        cast(nn.Module, network).to(where)
        policy = Policy(
            network,
            tokenizer,
            where,
            precision,
            folder,
            name,
            revision,
            chat_template,
            kernels,
            wide,
            folders.cache_folder(cache),
            stored=stored_dtypes(folder),
        )
        if kernels == "fused":
            require_same(policy, lambda: into_layers(policy.base), "the kernels of liger-kernel")
        choose_path(policy, engine)
    return policy
