"""A policy: a loaded model with what the engine knows of it. The only code that reaches for a model's decoder and head,
and that counts what it computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from prospect.engine import folders
from prospect.engine.attention import attention_is_by_tree, by_tree
from prospect.engine.device import COMPUTED_IN, TRAINED_IN, Kernels, Precision
from prospect.engine.head import Head, finish, pick
from prospect.engine.layers import cast_inputs_once, lighten
from prospect.errors import ConfigError, ModelError

UNLIMITED = 1 << 30
"""The context of a model that names no limit."""


class TargetScores(NamedTuple):
    """Log-probs of M targets, the sums over the vocabulary of p^2, and the hidden states (M, H) they came from."""

    logp: Tensor
    sum_p2: Tensor | None = None
    hidden: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """Weights that a token meets in the decoder and in the head, how many of each are trained, and attention's
    multiplications for a query and a key.

    A weight costs a token 2 operations forward and 4 backward, a frozen one 2. What backward computes again does not
    count, nor do windows that let a query see less.
    """

    body: float = 0.0
    body_trained: float = 0.0
    head: float = 0.0
    head_trained: float = 0.0
    attention: float = 0.0

    def flops(self, *, tokens: int, targets: int, pairs: int, backward: bool) -> float:
        """Of a pass over `tokens`, with log-probs of `targets` and `pairs` of a query and a key that it sees."""
        attention = self.attention * pairs
        forward = 2 * (self.body * tokens + self.head * targets + attention)
        trained = 2 * (self.body_trained * tokens + self.head_trained * targets + attention)
        return 2 * forward + trained if backward else forward


@dataclass(eq=False, repr=False)
class Policy:
    """A model, what the user called it, and how the engine runs it.

    `name` is what the user said (a local folder: its absolute path), `chat_template` what they chose, None for the
    tokenizer's own; the tokenizer has it already. `wide`: frozen weights are float32 as well, whatever they are stored
    in. `cache` remembers the digests of files. `stored` are the dtypes of the folder's tensors, see weights.py. `path`
    is how `forward` runs the model, `path_reason`, for the user, why not on trees or with the chunked head; sequences
    beyond `checked_length` run padded in any case. `flops` counts what `score` has computed so far.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase | None
    device: torch.device
    precision: Precision
    folder: Path | None = None
    name: str = ""
    revision: str | None = None
    chat_template: str | None = None
    kernels: Kernels = "torch"
    wide: bool = True
    cache: Path | None = None
    path: Literal["tree", "padded"] = "padded"
    path_reason: str = ""
    checked_length: int = UNLIMITED
    chunked_head: bool = True
    stored: Mapping[str, torch.dtype] = field(default_factory=dict)
    value_head: nn.Module | None = None
    decoder: nn.Module = field(init=False)
    head: Head = field(init=False)
    configs: tuple[Any, ...] = field(init=False)
    cost: Cost = field(init=False)
    flops: float = field(init=False, default=0.0)
    _checkpointed: list[GradientCheckpointingLayer] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.adopt(self.model)

    def adopt(self, model: PreTrainedModel | PeftModel) -> None:
        """Run `model` from now on, which may have gained an adapter: find its parts, switch its dropout off."""
        self.model = model
        self.decoder, self.head = cast(Any, self.base).get_decoder(), _head(self.base, self.kernels == "fused")
        self.configs = tuple({id(m.config): m.config for m in self.base.modules() if hasattr(m, "config")}.values())
        for config in self.configs:
            if self.precision == "fp64":
                config._experts_implementation = "eager"  # the faster ones know no float64
            if getattr(config, "attn_logit_softcapping", None):
                config._attn_implementation = "eager"  # the default of transformers before 5.23 forgets the cap
        _no_dropout(model)
        cast_inputs_once(self.base)
        if self.kernels == "torch":
            lighten(self.base)
        embeddings = cast(Any, self.base).get_input_embeddings()
        _sparse_where_tied(embeddings, self.head.module)
        self.cost = cost_of(self.decoder, embeddings, self.head.module, self.base.config.get_text_config())

    @property
    def is_adapted(self) -> bool:
        """Whether an adapter is attached."""
        return isinstance(self.model, PeftModel)

    @property
    def base(self) -> PreTrainedModel:
        """The transformers model, any adapter's layers inside."""
        return cast(PreTrainedModel, self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model)

    def score(
        self,
        inputs: Mapping[str, Any],
        index: Tensor,
        targets: Tensor,
        pairs: int,
        *,
        want_sum_p2: bool,
        want_hidden: bool = False,
        before: Tensor | None = None,
    ) -> TargetScores:
        """Run the model on `inputs` (B, T), where `pairs` of a query and a key meet, and score targets (M,) at `index`
        (M,), which counts through all B * T, and first through the hidden states `before` (K, H).

        Raises ModelError where hidden states are wanted of a model whose head the engine cannot run by itself.
        """
        if want_hidden and not self.chunked_head:
            raise ModelError(f"{self.architecture} hides the states before its head, which this loss needs")
        tokens, backward = inputs["input_ids"].numel(), torch.is_grad_enabled() and bool(self.cost.body_trained)
        self.flops += self.cost.flops(tokens=tokens, targets=len(index), pairs=pairs, backward=backward)
        with self.autocast(), self._training_layers():
            if not self.chunked_head:
                logits = self.base(**inputs, use_cache=False).logits.flatten(0, 1).index_select(0, index)
                return TargetScores(*pick(finish(logits, None, 1.0, None)[0], targets, want_sum_p2))
            states = [] if before is None else [before]
            if tokens:
                states.append(self.decoder(**inputs, use_cache=False)[0].flatten(0, 1))
            hidden = (states[0] if len(states) == 1 else torch.cat(states)).index_select(0, index)
        scores = self.head.logp(hidden, targets, compute_dtype=COMPUTED_IN[self.precision], want_sum_p2=want_sum_p2)
        return TargetScores(*scores, hidden if want_hidden else None)

    def logp(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Log-probs (M,) in nats of targets (M,) under hidden states (M, H)."""
        backward = torch.is_grad_enabled() and bool(self.cost.head_trained)
        self.flops += self.cost.flops(tokens=0, targets=len(targets), pairs=0, backward=backward)
        return self.head.logp(hidden, targets, compute_dtype=COMPUTED_IN[self.precision], want_sum_p2=False)[0]

    def add_value_head(self, seed: int, *, linear: bool = False) -> None:
        """Give it a value of every token, which trains beside the model and is not part of its folder: three layers on
        the hidden states (as in the HALOs repository's offline PPO), or a linear one, drawn from `seed`, 0 at the
        start."""
        size = self.base.config.get_text_config().hidden_size
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            last = nn.Linear(size, 1)
            deep = () if linear else (nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size), nn.ReLU())
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        layers = (*deep, last)
        self.value_head = cast(nn.Module, nn.Sequential(*layers)).to(self.device, TRAINED_IN[self.precision])

    def values(self, hidden: Tensor) -> Tensor:
        """The value head's (M,) of hidden states (M, H), which its gradient does not reach."""
        assert self.value_head is not None, "add_value_head comes first"
        (first, *_) = self.value_head.parameters()
        values: Tensor = self.value_head(hidden.detach().to(first.dtype))[:, 0]
        return values

    def autocast(self) -> AbstractContextManager[Any]:
        """The context that a forward pass runs in, whatever the precision; see `computing_in`."""
        return computing_in(self.precision, self.device)

    def tree_attention(self) -> AbstractContextManager[None]:
        """The context in which the model takes packed rows."""
        return by_tree(self.configs)

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters that take gradients, by name; a tied one once."""
        heads = [] if self.value_head is None else list(self.value_head.named_parameters(prefix="value_head"))
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad] + heads

    def checkpoint_activations(self, on: bool = True) -> None:
        """Keep only each layer's input for backward, and compute the layer again there: a third more time, far less
        memory. Raises ConfigError where the model has no layers that can do it."""
        layers = [m for m in self.model.modules() if isinstance(m, GradientCheckpointingLayer)]
        if on and not layers:
            raise ConfigError(f"{self.architecture} cannot checkpoint activations: use --activation-checkpointing off")
        for layer in layers:
            layer.gradient_checkpointing = on
            recompute = partial(checkpoint, use_reentrant=False, context_fn=self._recompute_contexts)
            layer._gradient_checkpointing_func = recompute  # type: ignore[assignment]
        self._checkpointed = layers if on else []

    def _recompute_contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """For the forward pass, and for the recomputation: by then the contexts of this pass have been left."""
        return nullcontext(), self._same_again(attention_is_by_tree(self.configs))

    @contextmanager
    def _same_again(self, on_trees: bool) -> Iterator[None]:
        with self.autocast(), self.tree_attention() if on_trees else nullcontext():
            yield

    @contextmanager
    def _training_layers(self) -> Iterator[None]:
        """transformers checkpoints layers in training mode only. They get it for this pass, without what is inside
        them: dropout stays off, and between passes the model can generate with its cache."""
        for layer in self._checkpointed:
            layer.training = torch.is_grad_enabled()
        try:
            yield
        finally:
            for layer in self._checkpointed:
                layer.training = False

    @property
    def parameters(self) -> int:
        """How many there are; a tied one counts once."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def trainable_parameters(self) -> int:
        return sum(p.numel() for _, p in self.trainable())

    @property
    def architecture(self) -> str:
        return type(self.base).__name__

    @property
    def context(self) -> int:
        """The most tokens of a sequence."""
        limit = getattr(self.base.config.get_text_config(), "max_position_embeddings", None)
        return limit if isinstance(limit, int) else UNLIMITED

    @cached_property
    def digest(self) -> str:
        """Fingerprint of what was loaded, whatever training has made of it since."""
        assert self.folder is not None, "a policy made in memory has no folder"
        return folders.fingerprint(self.folder, self.cache)


def _head(base: PreTrainedModel, fused: bool) -> Head:
    """The output embeddings, and what the config says is done to their logits; if that is not all, the check fails."""
    config = base.config.get_text_config()
    scale = 1.0
    for name, exponent in (("logit_scale", 1), ("lm_head_multiplier", 1), ("logits_scaling", -1)):
        scale *= float(getattr(config, name, None) or 1.0) ** exponent
    module = cast(Any, base).get_output_embeddings()
    return Head(module, config.vocab_size, scale, getattr(config, "final_logit_softcapping", None), fused)


def _sparse_where_tied(embeddings: nn.Module, head: nn.Module) -> None:
    """Trained embeddings that are the head's weight, too: the head's gradient is there already when theirs comes, and
    takes its few rows as they are, instead of a second matrix of the whole vocabulary that is nearly all zeros. On CUDA
    rows would be added in any order."""
    weight = getattr(embeddings, "weight", None)
    if isinstance(embeddings, nn.Embedding) and weight is getattr(head, "weight", None):
        embeddings.sparse = bool(embeddings.weight.requires_grad and embeddings.weight.device.type == "cpu")


def _no_dropout(model: nn.Module) -> None:
    """Evaluation mode, and every rate at zero, whoever may switch to training mode later."""
    model.eval()
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and ("drop" in name or (name == "p" and isinstance(module, nn.Dropout))):
                setattr(module, name, 0.0)


def cost_of(decoder: nn.Module, embeddings: nn.Module, head: nn.Module, config: Any) -> Cost:
    """The cost of a model from its matrices and its text config. Of experts a token meets as many as are chosen."""
    chosen = getattr(config, "num_experts_per_tok", None) or 1
    chosen = sum(chosen) / len(chosen) if isinstance(chosen, (list, tuple)) else chosen  # some name it layer by layer
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None) or 1
    looked_up = {id(p) for p in embeddings.parameters()}
    body = body_trained = 0.0
    for name, p in decoder.named_parameters():
        if p.ndim > 1 and id(p) not in looked_up:
            size = p.numel() * (chosen / experts if "expert" in name and "shared" not in name else 1.0)
            body, body_trained = body + size, body_trained + size * p.requires_grad
    outs = [p for p in head.parameters() if p.ndim > 1]
    heads = getattr(config, "num_attention_heads", None) or 0  # without attention there are none
    size = (getattr(config, "head_dim", None) or config.hidden_size // heads) if heads else 0
    return Cost(
        body,
        body_trained,
        float(sum(p.numel() for p in outs)),
        float(sum(p.numel() for p in outs if p.requires_grad)),
        2.0 * config.num_hidden_layers * heads * size,
    )


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
