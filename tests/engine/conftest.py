"""Tiny models of many architectures with random weights that matter, as policies and as folders, and random trees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from prospect.engine import gather
from prospect.engine.checks import choose_path
from prospect.engine.device import TRAINED_IN
from prospect.engine.load import to_dtype
from prospect.engine.packing import Branches
from prospect.engine.policy import Policy

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


def _network(name: str, seed: int, changes: dict[str, Any]) -> Any:
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


@pytest.fixture
def tiny() -> Callable[..., Policy]:
    """tiny(architecture, precision="fp32", seed=0, **config) -> a checked policy without tokenizer or folder."""

    def build(
        name: str, precision: Any = "fp32", seed: int = 0, engine: Any = "auto", device: str = "cpu", **changes: Any
    ) -> Policy:
        network = _network(name, seed, changes)
        to_dtype(network.parameters(), TRAINED_IN[precision])
        policy = Policy(network.to(device), None, torch.device(device), precision)
        choose_path(policy, engine)
        return policy

    return build


@pytest.fixture
def model_folder(tmp_path: Path) -> Callable[..., Path]:
    """model_folder(architecture="llama", dtype=float32, folder="model", **config) -> what save_pretrained leaves."""

    def build(name: str = "llama", dtype: Any = torch.float32, folder: str = "model", **changes: Any) -> Path:
        words = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", *map(str, range(98))])}
        bare = Tokenizer(models.WordLevel(words, unk_token="0"))
        bare.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=bare, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="0"
        )
        tokenizer.chat_template = "{% for m in messages %}{{ m.content }} </s> {% endfor %}"
        path = tmp_path / folder
        _network(name, 0, changes).to(dtype).save_pretrained(path)
        tokenizer.save_pretrained(path)
        return path

    return build


@pytest.fixture
def trees() -> Callable[..., list[Branches]]:
    """trees(shape, seed=0) with a shape per tree: (prompt tokens, [tokens of each completion])."""

    def build(shapes: list[tuple[int, list[int]]], seed: int = 0) -> list[Branches]:
        rng = np.random.default_rng(seed)

        def ids(length: int) -> Any:
            return rng.integers(SMALL["vocab_size"], size=length, dtype=np.int32)

        return [Branches(ids(prompt), tuple(map(ids, completions))) for prompt, completions in shapes]

    return build


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, attention on a CPU takes 32 queries at once."""

    return lambda: monkeypatch.setattr(gather, "BLOCK", 32)
