"""Tiny networks of many architectures with random weights that matter, shapes of trees, and a slow flash kernel."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM

SMALL = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

MIXED = ["sliding_attention", "full_attention"]

NO_GROUPS = {"num_key_value_heads": 4}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {"sliding_window": 6}),
    "gemma2": ("Gemma2Config", {"sliding_window": 6, "layer_types": MIXED, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3TextConfig", {"sliding_window": 6, "layer_types": MIXED, "query_pre_attn_scalar": 8}),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "gpt_neox": ("GPTNeoXConfig", {}),
    "phi3": ("Phi3Config", {}),
    "olmo2": ("Olmo2Config", {}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "smollm3": ("SmolLM3Config", {"no_rope_layers": [1, 0]}),
    "cohere": ("CohereConfig", {"logit_scale": 0.3}),
    "granite": ("GraniteConfig", {"logits_scaling": 3.0, "residual_multiplier": 0.5}),
    "gpt_oss": (
        "GptOssConfig",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6, "layer_types": MIXED},
    ),
    "lfm2": ("Lfm2Config", {"layer_types": ["conv", "full_attention"]}),
    "falcon_h1": (
        "FalconH1Config",
        {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1},
    ),
}


def make_network(name: str, seed: int, changes: dict[str, Any]) -> Any:
    kind, own = CONFIGS[name]
    if name.startswith("gpt") and name != "gpt_oss":
        own = {**NO_GROUPS, **own}
    config = getattr(transformers, kind)(**{**SMALL, **own, **changes})
    torch.manual_seed(seed)
    network = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            # Matrices keep the size of what passes through; norms, biases and sinks leave their neutral values.
            parameter.copy_(noise * parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else parameter + 0.3 * noise)
    return network


ON_TREES = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "gpt2", "gpt_neox", "phi3", "olmo2", "mixtral"]

ON_TREES += ["smollm3", "cohere", "granite"]

PADDED = ["gpt_oss", "lfm2", "falcon_h1"]

# A single-token completion and prompt, many branches, branches longer and shorter than the prompt and the windows of 6.
SHAPES = [(5, [4, 1, 9]), (1, [1]), (12, [13]), (9, [2, 2, 2, 7, 1, 5]), (1, [8, 1]), (20, [1, 1, 15])]


def plain_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """As the documentation has it: sequences between the cumulative ends, causal and windows aligned lower right."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32 and len(query) == cu_seq_q[-1] and len(key) == cu_seq_k[-1]
    share = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(share, 1), value.repeat_interleave(share, 1)
    outputs = []
    ends = zip(cu_seq_q.tolist(), cu_seq_q.tolist()[1:], cu_seq_k.tolist(), cu_seq_k.tolist()[1:], strict=False)
    for q0, q1, k0, k1 in ends:
        assert 0 < q1 - q0 <= max_q and 0 < k1 - k0 <= max_k
        q, k, v = (x.transpose(0, 1) for x in (query[q0:q1], key[k0:k1], value[k0:k1]))
        back = torch.arange(q1 - q0)[:, None] + (k1 - k0) - (q1 - q0) - torch.arange(k1 - k0)
        seen = back >= 0 if window_size[0] == -1 else (back >= 0) & (back <= window_size[0])
        assert window_size[1] == 0
        scores = q @ k.transpose(1, 2) * (query.shape[-1] ** -0.5 if scale is None else scale)
        outputs.append((scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outputs)
