"""What a run leaves: the model as the start model was stored, the same that was measured, and exact checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from prospect.engine.load import load
from prospect.errors import Interrupted
from prospect.evaluate.scoring import evaluate_feedback
from prospect.run import train
from prospect.training import loop
from tests.helpers.training import make_model, thumbs, write_rows

FAST: dict[str, Any] = {"precision": "fp32", "batch_size": 8, "learning_rate": 1e-2, "samples": 0}


@pytest.fixture
def narrow(tmp_path: Path) -> Path:
    """A model that is stored in bfloat16."""
    folder = make_model(tmp_path / "narrow")
    AutoModelForCausalLM.from_pretrained(folder).to(torch.bfloat16).save_pretrained(folder)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def test_what_was_measured_is_what_is_saved(narrow: Path, tmp_path: Path) -> None:
    held = write_rows(tmp_path / "held.jsonl", thumbs(16, seed=9))
    run = train(narrow, thumbs(32), tmp_path / "run", eval_data=str(held), **FAST)
    assert {t.dtype for t in weights(run.folder).values()} == {torch.bfloat16}
    again = evaluate_feedback(load(run.folder / "model", precision="fp32", frozen=True), str(narrow), held)
    after = run.evaluate()
    assert after and after.margin and after.nll and again.margin and again.nll
    assert again.margin.value == pytest.approx(after.margin.value, abs=1e-6)
    assert again.nll.value == pytest.approx(after.nll.value, abs=1e-6)
    (newest, *_) = sorted((run.folder / "checkpoints").glob("step-*"), reverse=True)
    kept = load_file(newest / "weights.safetensors")
    assert {t.dtype for t in kept.values()} == {torch.float32}
    assert not all(torch.equal(t, t.bfloat16().float()) for t in kept.values())


def test_a_resumed_run_saves_the_same_bits(narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_rows(tmp_path / "data.jsonl", thumbs(32))
    whole = train(narrow, data, tmp_path / "whole", save_every=1, **FAST)
    original = loop._save

    def stopping(job: Any, step: Any, *rest: Any) -> None:
        original(job, step, *rest)
        if step.index == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_save", stopping)
    with pytest.raises(Interrupted):
        train(narrow, data, tmp_path / "cut", save_every=1, **FAST)
    monkeypatch.setattr(loop, "_save", original)
    train(out=tmp_path / "cut", resume=True)
    one, two = weights(whole.folder), weights(tmp_path / "cut")
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("lora", [None, "r=2"])
def test_another_dtype_by_flag(narrow: Path, tmp_path: Path, lora: str | None) -> None:
    run = train(narrow, thumbs(8), tmp_path / "run", save_dtype="fp32", lora=lora, max_steps=1, **FAST)
    file = "model.safetensors" if lora is None else "adapter_model.safetensors"
    assert {t.dtype for t in load_file(run.folder / "model" / file).values()} == {torch.float32}


def test_the_ends_that_were_trained_end_answers_later(tmp_path: Path) -> None:
    """Of complete answers only, and special tokens only: one that was cut off behind its thought ends nothing."""
    folder = make_model(tmp_path / "start")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["w7", "w8"]})  # the end of a tool call, say
    tokenizer.add_tokens(["w9"])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }} {{ 'w7' if m.content[:4] == 'call' else '</s>' }} {% endfor %}"
    )
    tokenizer.save_pretrained(folder)
    said = json.loads((folder / "generation_config.json").read_text())
    rows: list[dict[str, Any]] = [
        {"prompt": [{"role": "user", "content": f"w{k}"}], "completion": [{"role": "assistant", "content": text}]}
        for k, text in ((11, "w3 w4"), (12, "call w4"), (13, "w5 w9"), (14, "w6"))
    ]
    rows = [row | {"label": bool(k % 2)} for k, row in enumerate(rows)]
    run = train(folder, rows, tmp_path / "run", max_steps=1, **FAST)
    saved = json.loads((run.folder / "model" / "generation_config.json").read_text())
    w7 = tokenizer.convert_tokens_to_ids("w7")
    assert saved == said | {"eos_token_id": [2, w7]}
