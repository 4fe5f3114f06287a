"""The last layer behind its attention: only for the tokens that predict something.

There a decoder layer works on each token alone, and nobody reads what the last one makes of the rest of a prompt. Where
prompts are long that is most of its work. A layer is taken over by its parts; whether that was right, the checks at
load find out, as for everything that concerns packed rows.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

PARTS = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
"""Children of a decoder layer that computes x + attention(norm(x)), then y + mlp(norm(y))."""


def shorten(decoder: nn.Module) -> nn.Module | None:
    """Let the last layer take the keyword `wanted`: indices (M,) of the tokens whose states, (1, M, H), it returns.
    Without it the layer stays as it is. Returns what then runs on M tokens alone, or None where this layer has other
    parts."""
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return None
    layer: Any = layers[-1]
    if {name for name, _ in layer.named_children()} != PARTS:
        return None
    layer.forward = partial(_last, layer)
    out = getattr(layer.self_attn, "o_proj", None)
    return nn.ModuleList(part for part in (layer.mlp, out) if part is not None)


def _last(layer: Any, hidden_states: Tensor, *, wanted: Tensor | None = None, **inputs: Any) -> Any:
    if wanted is None:
        return type(layer).forward(layer, hidden_states, **inputs)

    def pick(_: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        return args[0].index_select(1, wanted)

    out = getattr(layer.self_attn, "o_proj", None)
    hook = None if out is None else out.register_forward_pre_hook(pick)
    try:
        attended, *_ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **inputs)
    finally:
        if hook is not None:
            hook.remove()
    hidden = hidden_states.index_select(1, wanted)
    hidden = hidden + (attended if hook is not None else attended.index_select(1, wanted))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))
