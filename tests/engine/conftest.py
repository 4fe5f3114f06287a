"""Tiny models of many architectures with random weights that matter, as policies and as folders, and random trees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prospect.engine import attention
from prospect.engine.checks import choose_path
from prospect.engine.device import TRAINED_IN
from prospect.engine.load import to_dtype
from prospect.engine.packing import Branches
from prospect.engine.policy import Policy
from tests.helpers.architectures import SMALL, make_network


@pytest.fixture
def tiny() -> Callable[..., Policy]:
    """tiny(architecture, precision="fp32", seed=0, **config) -> a checked policy without tokenizer or folder."""

    def build(
        name: str, precision: Any = "fp32", seed: int = 0, engine: Any = "auto", device: str = "cpu", **changes: Any
    ) -> Policy:
        network = make_network(name, seed, changes)
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
        make_network(name, 0, changes).to(dtype).save_pretrained(path)
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

    return lambda: monkeypatch.setattr(attention, "QUERIES", 32)
