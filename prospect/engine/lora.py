"""LoRA: train a small adapter beside a frozen model, and fold it in at the end."""

from __future__ import annotations

import gc
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from prospect.data.tokens import Encoder
from prospect.engine import folders
from prospect.engine.device import TRAINED_IN
from prospect.engine.load import read_adapter, read_model, read_tokenizer, to_dtype, without_warnings
from prospect.engine.policy import Policy
from prospect.engine.weights import SaveDtype, dtypes_to_save, generation_values, round_to, stored_dtypes, write
from prospect.errors import ConfigError, ModelError, nearest

ALL_LINEAR = "all-linear"
SAME = 1e-3
"""Nats per token by which a merged model in float32 may be off the adapter on its base."""


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """W + (alpha / r) B A with A (r, in), B (out, r), and B = 0 at the start.

    `alpha` None is 2 r, so that a change of r leaves the scale of the update alone. `targets` are ends of module names;
    "all-linear" is every linear layer but the head.
    """

    r: int = 16
    alpha: int | None = None
    targets: tuple[str, ...] = (ALL_LINEAR,)

    @property
    def scale(self) -> int:
        """Alpha as it is used."""
        return 2 * self.r if self.alpha is None else self.alpha


def parse_lora(text: str) -> LoraSpec:
    """ "r=16,alpha=32,targets=q_proj+v_proj" in any order, each part optional. Raises ConfigError."""
    settings: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, value = (s.strip() for s in part.partition("="))
        if name not in ("r", "alpha", "targets") or not equals or not value:
            hint = nearest(name, ("r", "alpha", "targets"))
            raise ConfigError(f'--lora: cannot read "{part}". Expected r=16,alpha=32,targets=q_proj+v_proj.{hint}')
        if name in settings:
            raise ConfigError(f'--lora names "{name}" twice')
        settings[name] = value
    spec = LoraSpec()
    for name, value in settings.items():
        if name == "targets":
            spec = replace(spec, targets=tuple(filter(None, (target.strip() for target in value.split("+")))))
        elif value.isdecimal() and int(value) > 0:
            spec = replace(spec, r=int(value)) if name == "r" else replace(spec, alpha=int(value))
        else:
            raise ConfigError(f'--lora: {name} must be a whole number above 0, not "{value}"')
    return spec


def attach_lora(policy: Policy, spec: LoraSpec, seed: int) -> None:
    """Freeze the policy's parameters and put a trainable adapter beside them, drawn from `seed`; no log-prob changes.

    To train an adapter further, load its folder and attach nothing. Raises ConfigError for targets the model lacks,
    ModelError where the policy is an adapter already.
    """
    if isinstance(policy.model, PeftModel):
        raise ModelError(
            f"{policy.name} is an adapter already. Leave out --lora to train it further, or fold it in first with "
            "`prospect merge` and start a new one"
        )
    config = LoraConfig(
        r=spec.r,
        lora_alpha=spec.scale,
        target_modules=ALL_LINEAR if spec.targets == (ALL_LINEAR,) else list(spec.targets),
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
        base_model_name_or_path=policy.name,
        revision=policy.revision,
    )
    devices = [policy.device] if policy.device.type == "cuda" else []
    with torch.random.fork_rng(devices), without_warnings():
        torch.manual_seed(seed)
        try:
            whole = get_peft_model(policy.base, config, autocast_adapter_dtype=False)
        except ValueError as error:
            raise ConfigError(f"--lora targets={'+'.join(spec.targets)}: {error}") from error
    policy.adopt(whole)
    to_dtype((p for p in whole.parameters() if p.requires_grad), TRAINED_IN[policy.precision])


def merge(adapter: str | Path, out: str | Path, *, dtype: SaveDtype = "auto") -> float:
    """Fold an adapter into its base, W + (alpha / r) B A: computed in float32, written as a plain model folder `out` in
    the dtypes that the base is stored in, or in `dtype`. Returns by how many nats the rounding to them moves the
    log-prob of a token on average.

    An adapter on the head or the embeddings of a model that has both in one matrix makes them two. Before `out` is
    there, the folder is loaded again and compared with the adapter on its base. Raises ModelError for anything but an
    adapter folder and where the comparison fails, ConfigError where `out` exists.
    """
    out = Path(out)
    if out.exists():
        raise ConfigError(f"{out} exists already; nothing was written. Choose another folder")
    folder = folders.find(adapter)
    if not folders.is_adapter(folder):
        raise ModelError(
            f"{adapter} is a plain model; only an adapter (a folder with adapter_config.json) can be merged"
        )
    base_folder = folders.base_of(folder)
    stored, tokenizer = stored_dtypes(base_folder), read_tokenizer(folder, base_folder)
    network: Any = read_adapter(read_model(base_folder, torch.float32), folder, trainable=False)
    expected = _probe(network)
    _untie(network.get_base_model())
    network = network.merge_and_unload()
    merged = _probe(network)
    _require_close(merged, expected, "folding the adapter in", adapter)
    dtypes = dtypes_to_save(network, stored, dtype)
    round_to(dtypes)
    rounded = _probe(network)
    ends = Encoder(tokenizer).end_of_turn_ids
    start = next((f for f in (folder, base_folder) if (f / "generation_config.json").exists()), None)
    generation = generation_values(network, start, ends)
    unchecked = out.with_name(f".{out.name}.unchecked")
    try:
        write(network, tokenizer, unchecked, dtypes=dtypes, generation=generation)
        del network, dtypes  # one model at a time
        gc.collect()
        _require_close(_probe(read_model(unchecked, torch.float32)), rounded, "writing and reading it again", adapter)
        unchecked.rename(out)
    finally:
        shutil.rmtree(unchecked, ignore_errors=True)
    return float((rounded - merged).abs().mean())


def _untie(base: PreTrainedModel) -> None:
    """Give a model whose head is its embeddings a head of its own, where an adapter changes one of the two only."""
    parts = [base.get_input_embeddings(), base.get_output_embeddings()]
    embeddings, head = (part.get_base_layer() if isinstance(part, LoraLayer) else part for part in parts)
    changed = any(isinstance(part, LoraLayer) for part in parts)
    if changed and getattr(head, "weight", None) is getattr(embeddings, "weight", None):
        cast(Any, head).weight = nn.Parameter(cast(Any, head).weight.detach().clone(), requires_grad=False)
        for config in (base.config, base.config.get_text_config()):
            config.tie_word_embeddings = False


@torch.no_grad()
def _probe(network: nn.Module) -> Tensor:
    """Log-probs (N,) in nats of random tokens and of the newest, by the model's own forward."""
    size = cast(Any, network).config.get_text_config().vocab_size
    ids = torch.randint(size, (4, 32), generator=torch.Generator().manual_seed(0))
    ids[0, -8:] = torch.arange(size - 8, size) % size
    logits: Tensor = network(input_ids=ids, use_cache=False).logits[:, :-1].float()
    return logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).flatten()


def _require_close(merged: Tensor, expected: Tensor, step: str, adapter: str | Path) -> None:
    """Raises ModelError where a step of merging has made another model."""
    off = float((merged - expected).abs().max())
    if not off <= SAME:
        raise ModelError(
            f"{step} makes another model of {adapter}: {off:.2g} nats off at a token. Nothing was written; use the "
            "adapter as it is (every command takes its folder), and report the architecture and its target modules"
        )
