"""The last layer behind its attention: only for the tokens that predict something.

There a decoder layer works on each token alone, and nobody reads what the last one makes of the rest of a prompt. Where
prompts are long that is most of its work. A layer is taken over by its parts; whether that was right, the checks at
load find out, as for everything that concerns packed rows.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

PARTS = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
"""Children of a decoder layer that computes x + attention(norm(x)), then y + mlp(norm(y))."""
RECOMPUTED_FROM_OUTSIDE = "__call__" in vars(GradientCheckpointingLayer)
"""Whether transformers checkpoints what `forward` of an instance may be, or what it is in the class (from 5.23)."""


def shorten(decoder: nn.Module) -> nn.Module | None:
    """Let the last layer take the keyword `wanted`: indices (M,) of the tokens whose states, (1, M, H), it returns.
    Without it the layer stays as it is. Returns what then runs on M tokens alone, or None where this layer has other
    parts."""
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return None
    layer: Any = layers[-1]
    own = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
    if {name for name, _ in layer.named_children()} != PARTS or own:
        return None
    layer.forward = partial(_last, layer)
    out = _out(layer)
    return nn.ModuleList(part for part in (layer.mlp, out) if part is not None)


def _out(layer: Any) -> nn.Module | None:
    """The attention's output projection as it is now: an adapter may have taken its place."""
    return getattr(layer.self_attn, "o_proj", None)


def _last(layer: Any, hidden_states: Tensor, *args: Any, wanted: Tensor | None = None, **inputs: Any) -> Any:
    if wanted is None:
        return type(layer).forward(layer, hidden_states, *args, **inputs)
    work: Any = partial(_short, layer, wanted=wanted, **inputs)
    recomputed = getattr(layer, "gradient_checkpointing", False) and layer.training and not RECOMPUTED_FROM_OUTSIDE
    return layer._gradient_checkpointing_func(work, hidden_states) if recomputed else work(hidden_states)


def _short(layer: Any, hidden_states: Tensor, *, wanted: Tensor, **inputs: Any) -> Any:
    def pick(_: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        if args[0].shape[:2] != hidden_states.shape[:2]:  # out of range, CUDA would end the process
            raise TypeError("the attention's output projection gets states of another shape")
        return args[0].index_select(1, wanted)

    out = _out(layer)
    hook = None if out is None else out.register_forward_pre_hook(pick)
    try:
        attended, *_ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **inputs)
    finally:
        if hook is not None:
            hook.remove()
    hidden = hidden_states.index_select(1, wanted)
    hidden = hidden + (attended if hook is not None else attended.index_select(1, wanted))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))
