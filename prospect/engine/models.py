"""Policies: load a model folder, adapt it, run it in the right precision, save it. The only code that reaches for the decoder
and the head of a model.

    folder with config.json               a plain transformers folder
    folder with adapter_config.json       a PEFT adapter; its base comes along, and together they are the starting point
    any other name                        a model on the Hugging Face Hub, taken from the local cache or downloaded

Weights are safetensors; pickles and code that a model brings along are never run.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from prospect.engine import folders
from prospect.engine.attention import TreeAttention
from prospect.engine.checks import choose_path
from prospect.engine.logprobs import Head, Scores
from prospect.engine.pretrained import read_adapter, read_model, read_tokenizer, to_dtype, write
from prospect.errors import ConfigError
from prospect.template import Template

Precision = Literal["fp32", "bf16", "fp64"]
Engine = Literal["auto", "tree", "padded"]

TRAINED_IN: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}
COMPUTED_IN: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
UNLIMITED = 1 << 30
"""The context of a model that names no limit."""


@dataclass
class Policy:
    """A model with what the engine found out about it.

    `name` is what the user called it (a local folder: its absolute path), `chat_template` what they chose, None for the
    tokenizer's own; the tokenizer has it already. `path` says how `forward` runs it and `path_reason` why, where that is not
    the tree path; sequences longer than `checked_length` run padded in any case.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase | None
    device: torch.device
    precision: Precision
    folder: Path | None = None
    name: str = ""
    revision: str | None = None
    chat_template: str | None = None
    path: Literal["tree", "padded"] = "padded"
    path_reason: str = "not checked"
    checked_length: int = UNLIMITED
    chunked_head: bool = True
    decoder: nn.Module = field(init=False)
    head: Head = field(init=False)
    tree_attention: TreeAttention = field(init=False)
    _checkpointed: list[nn.Module] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.adopt(self.model)

    def adopt(self, model: PreTrainedModel | PeftModel) -> None:
        """Take `model`, which may now carry an adapter, as the one to run: find its parts and switch its dropout off."""
        self.model = model
        base = self.base
        self.decoder, self.head = base.get_decoder(), _head(base)
        configs = {id(m.config): m.config for m in base.modules() if hasattr(m, "config")}
        self.tree_attention = TreeAttention(configs.values())
        _no_dropout(model)

    @property
    def base(self) -> PreTrainedModel:
        """The transformers model, with any adapter's layers inside."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def score(self, inputs: dict[str, Any], index: Tensor, targets: Tensor, *, want_sum_p2: bool) -> Scores:
        """Run the model on `inputs` and score targets (M,) from the hidden states at `index` (M,) of the flattened (B * T)."""
        # transformers checkpoints in training mode. Only the layers themselves get it, what is inside them stays in eval, and
        # only for this call: in training mode they would not generate with a cache.
        for layer in self._checkpointed:
            layer.training = torch.is_grad_enabled()
        with self.autocast():
            if self.chunked_head:
                hidden = self.decoder(**inputs, use_cache=False)[0].flatten(0, 1).index_select(0, index)
            else:
                logits = self.base(**inputs, use_cache=False).logits.flatten(0, 1).index_select(0, index)
        for layer in self._checkpointed:
            layer.training = False
        if self.chunked_head:
            return self.head.logp(hidden, targets, compute_dtype=COMPUTED_IN[self.precision], want_sum_p2=want_sum_p2)
        every = logits.to(TRAINED_IN[self.precision]).log_softmax(-1)
        return every.gather(-1, targets[:, None]).squeeze(-1), every.exp().square().sum(-1) if want_sum_p2 else None

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of a forward pass. Leave it before the optimizer steps: inside, the cast weights are remembered."""
        if self.precision != "bf16":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Parameters that take gradients, by name, a tied one once."""
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    def checkpoint_activations(self, on: bool = True) -> None:
        """Keep only each layer's input for backward and compute the layer again there: less memory, a third more time.

        Raises ConfigError where the model has no layers that can.
        """
        layers = [m for m in self.model.modules() if isinstance(m, GradientCheckpointingLayer)]
        if on and not layers:
            raise ConfigError(
                f"{type(self.base).__name__} cannot checkpoint activations: use --checkpoint-activations off"
            )
        for layer in layers:
            layer.gradient_checkpointing = on
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, context_fn=self._recompute)
        self._checkpointed = layers if on else []

    def _recompute(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """(forward, recomputation): backward runs after the forward pass has left its tree attention."""
        return nullcontext(), self.tree_attention if self.tree_attention.active else nullcontext()

    @property
    def parameters(self) -> int:
        """All parameters, a tied one once."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def trainable_parameters(self) -> int:
        return sum(p.numel() for _, p in self.trainable())

    @property
    def architecture(self) -> str:
        return type(self.base).__name__

    @property
    def vocabulary(self) -> int:
        """Tokens the model has embeddings for."""
        return len(cast(nn.Embedding, self.base.get_input_embeddings()).weight)

    @property
    def context(self) -> int:
        """The longest sequence in tokens."""
        return context_of(self.base.config)

    @cached_property
    def digest(self) -> str:
        """Fingerprint of what was loaded, whatever training made of it since."""
        assert self.folder is not None, "a policy made in memory has no folder to digest"
        return folders.fingerprint(self.folder)


def context_of(config: PretrainedConfig) -> int:
    """The longest sequence in tokens that a model of this config can read."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        limit = getattr(text, name, None)
        if isinstance(limit, int) and limit > 0:
            return limit
    return UNLIMITED


def _head(base: PreTrainedModel) -> Head:
    """Output embeddings, and the names under which configs say what is done to their logits. A model that does something else
    fails the head check."""
    config = base.config.get_text_config()
    scale = 1.0
    for name, exponent in (("logit_scale", 1), ("lm_head_multiplier", 1), ("logits_scaling", -1)):
        scale *= float(getattr(config, name, None) or 1.0) ** exponent
    return Head(base.get_output_embeddings(), scale, getattr(config, "final_logit_softcapping", None))


def _no_dropout(model: nn.Module) -> None:
    """Evaluation mode, and every rate at zero for layers that checkpointing puts into training mode."""
    model.eval()
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if ("drop" in name or (name == "p" and isinstance(module, nn.Dropout))) and isinstance(value, float):
                setattr(module, name, 0.0)


def load(
    model: str | Path,
    *,
    precision: Precision | Literal["auto"] = "auto",
    device: str = "auto",
    chat_template: str | None = None,
    engine: Engine = "auto",
    revision: str | None = None,
    frozen: bool = False,
) -> Policy:
    """Load a model or adapter folder, or a Hub name, and check which engine path it can be trusted with.

    All parameters (of an adapter: its own) are trainable and float32 (float64 for "fp64"); with `frozen`, for references,
    evaluation and what LoRA will adapt, none is, and in "bf16" they keep the dtype they are stored in.
    `chat_template`: None for the tokenizer's own, "plain", or a Jinja file. Raises ModelError, ConfigError.
    """
    folder = folders.find(model, revision)
    base_folder = folders.base_of(folder) if folders.is_adapter(folder) else folder
    where = pick_device(device)
    how = pick_precision(precision, where)
    adapted = base_folder != folder
    stored = how == "bf16" and (frozen or adapted)
    network = read_model(base_folder, "auto" if stored else TRAINED_IN[how])
    tokenizer = read_tokenizer(folder, base_folder)
    if chat_template is not None:
        Template(tokenizer, chat_template)
    network.requires_grad_(not frozen and not adapted)
    whole = read_adapter(network, folder, trainable=not frozen) if adapted else network
    to_dtype((p for p in whole.parameters() if p.requires_grad), TRAINED_IN[how])
    name = str(folder) if Path(model).expanduser().exists() else str(model)
    policy = Policy(whole.to(where), tokenizer, where, how, folder, name, revision, chat_template)
    choose_path(policy, engine)
    return policy


def pick_device(device: str) -> torch.device:
    """ "auto" is CUDA where there is one. Raises ConfigError for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f'cannot use device "{device}": {error}. Expected auto, cpu, cuda or cuda:N') from error
    return chosen


def pick_precision(precision: Precision | Literal["auto"], device: torch.device) -> Precision:
    """ "auto" is bf16 where the hardware multiplies it (CUDA, AMX, AVX512-BF16), else fp32."""
    if precision != "auto":
        if precision not in COMPUTED_IN:
            raise ConfigError(f'unknown precision "{precision}": expected auto, {", ".join(COMPUTED_IN)}')
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported") if device.type == "cpu" else ()
    return "bf16" if any(getattr(torch.cpu, probe, bool)() for probe in probes) else "fp32"


def save(policy: Policy, folder: str | Path) -> None:
    """Write the policy as a model folder (of an adapter: an adapter folder), with the tokenizer, its chat template and the
    generation config, in the dtype it was trained in. What stood there before is replaced, and only by the whole.

    Raises RunError where the disk fails; then nothing has changed.
    """
    write(policy.model, policy.tokenizer, Path(folder))
