"""A tiny model folder, feedback on disk, and ready-made jobs for the loop."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prospect.engine.reference import ReferenceTable
from prospect.feedback.load import load
from prospect.losses import registry
from prospect.run import reference_table
from prospect.training import setup as prepare
from prospect.training.config import from_dict
from prospect.training.job import Job
from prospect.training.runlog import RunLog

WORDS = [f"w{i}" for i in range(40)]


def make_model(folder: Path, *, context: int = 64, seed: int = 0) -> Path:
    """A two-layer Llama with random weights and a tokenizer of whole words."""
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=context, bos_token_id=1, eos_token_id=2, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def sentence(draw: random.Random, low: int, high: int) -> str:
    return " ".join(draw.choice(WORDS[2:]) for _ in range(draw.randint(low, high)))


def thumbs(rows: int, *, seed: int = 0, per_prompt: int = 1, weights: bool = False) -> list[dict[str, Any]]:
    """Random answers; the ones that end with w0 are desirable, those with w1 are not, so that there is something to
    learn."""
    draw = random.Random(seed)
    found = []
    for i in range(rows):
        if i % per_prompt == 0:
            prompt = sentence(draw, 2, 7) + " "
        completion = sentence(draw, 1, 8) + (" w0" if i % 2 else " w1")
        row: dict[str, Any] = {"prompt": prompt, "completion": completion, "label": bool(i % 2)}
        found.append(row | ({"weight": draw.choice([0.5, 1.0, 2.0])} if weights else {}))
    return found


def pairs(rows: int, seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [
        {
            "prompt": sentence(draw, 2, 7) + " ",
            "chosen": sentence(draw, 1, 8) + " w0",
            "rejected": sentence(draw, 1, 8) + " w1",
        }
        for _ in range(rows)
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROSPECT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


MakeJob = Callable[..., Job]


@pytest.fixture
def make_job(model: Path, tmp_path: Path) -> MakeJob:
    """A job in float64 with its reference table filled: make_job(rows, loss=..., token_budget=...)."""

    def make(rows: list[dict[str, Any]], folder: str = "run", **options: Any) -> Job:
        out = tmp_path / folder
        out.mkdir(exist_ok=True)
        given = {"model": str(model), "data": "(test)", "out": str(out), "precision": "fp64", "batch_size": 8}
        config = from_dict(given | {"learning_rate": 1e-2} | options)
        loss = registry.modified(registry.find(config.loss), config.modify)
        policy = prepare.load_policy(config, config.model, frozen=False)
        training, _ = prepare.rows(config, loss, load(rows), None, policy)
        job = prepare.prepare(config, loss, policy, training, RunLog(out))
        job.reference = filled(job) if loss.needs_reference else None
        return job

    return make


def filled(job: Job) -> ReferenceTable:
    return reference_table(job, None, (), lambda: False)
