"""A model folder like a user's, small enough to write in a test."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.helpers.tokenizers import byte_level


def tiny(folder: Path, template: str | None, *, seed: int, context: int = 128) -> Path:
    """Write a Llama of one layer with random weights, its tokenizer and `template`; returns `folder`."""
    tokenizer = byte_level(template, pad_token="<|endoftext|>")
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=context,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
