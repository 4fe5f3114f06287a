"""LoRA: train a small adapter beside a frozen model, and fold it in at the end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from prospect.engine import folders
from prospect.engine.models import Policy
from prospect.engine.precision import TRAINED_IN
from prospect.engine.pretrained import read_adapter, read_model, read_tokenizer, to_dtype, without_warnings, write
from prospect.errors import ConfigError, ModelError, nearest

ALL_LINEAR = "all-linear"


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
    given: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, value = (s.strip() for s in part.partition("="))
        if name not in ("r", "alpha", "targets") or not equals or not value:
            hint = nearest(name, ("r", "alpha", "targets"))
            raise ConfigError(f'--lora: cannot read "{part}". Expected r=16,alpha=32,targets=q_proj+v_proj.{hint}')
        if name in given:
            raise ConfigError(f'--lora names "{name}" twice')
        given[name] = value
    spec = LoraSpec()
    for name, value in given.items():
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


def merge(adapter: str | Path, out: str | Path) -> None:
    """Fold an adapter into its base, W + (alpha / r) B A: computed in float32, written as a plain model folder `out` in
    the dtype that the base is stored in.

    Raises ModelError for anything but an adapter folder, ConfigError where `out` exists.
    """
    if Path(out).exists():
        raise ConfigError(f"{out} exists already; nothing was written. Choose another folder")
    folder = folders.find(adapter)
    if not folders.is_adapter(folder):
        raise ModelError(
            f"{adapter} is a plain model; only an adapter (a folder with adapter_config.json) can be merged"
        )
    base = read_model(folders.base_of(folder), "auto")
    stored = {name: p.dtype for name, p in base.named_parameters()}
    to_dtype(base.parameters(), torch.float32)
    whole = read_adapter(base, folder, trainable=False).merge_and_unload()
    for name, parameter in whole.named_parameters():
        to_dtype([parameter], stored[name])
    write(whole, read_tokenizer(folder, folders.base_of(folder)), Path(out))
