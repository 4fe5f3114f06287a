"""The marks of tests that need a GPU, or newer libraries than the oldest that Prospect runs with."""

from __future__ import annotations

import inspect

import pytest
import torch
from transformers import PreTrainedTokenizerBase, TrainingArguments

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU: it runs what only CUDA has, or measures its memory"
)

needs_guarded_templates = pytest.mark.skipif(
    "sanitize_control_tokens" not in inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters,
    reason="needs a transformers whose apply_chat_template knows sanitize_control_tokens; 5.23 does, 5.17 does not",
)

OLD_ARGUMENTS = (
    ""
    if hasattr(TrainingArguments, "activation_checkpointing")
    else "needs a transformers whose TrainingArguments know activation_checkpointing; 5.23's do, 5.17's do not"
)
"""Why TRL's arguments here are not those that the tests name; empty where they are."""
