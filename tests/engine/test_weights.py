"""What a model is saved in: as its start model is stored, whatever it was trained in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from prospect.engine.load import load
from prospect.engine.lora import LoraSpec, attach_lora
from prospect.engine.packing import forward
from prospect.engine.policy import Policy
from prospect.engine.weights import dtypes_to_save, round_to, save

Build = Callable[..., Any]
SHAPES = [(5, [4, 1, 9]), (2, [3])]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PROSPECT_CACHE", str(tmp_path / "cache"))


def move(policy: Policy) -> None:
    """A step that float32 can hold and bfloat16 cannot."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in policy.trainable():
            parameter.add_((torch.randn(parameter.shape, generator=generator) * 1e-3).to(parameter.device))


def logp(policy: Policy, trees: Any) -> torch.Tensor:
    with torch.no_grad():
        return forward(policy, trees).token_logp


@pytest.mark.parametrize("name", ["llama", "qwen3", "mixtral", "gpt2"])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
def test_a_model_is_saved_as_it_was_stored(
    model_folder: Build, trees: Build, tmp_path: Path, name: str, stored: torch.dtype
) -> None:
    start = model_folder(name, dtype=stored)
    policy = load(start, precision="fp32")
    move(policy)
    weights = {name: p.clone() for name, p in policy.trainable()}
    save(policy, tmp_path / "out")
    assert all(p.dtype == torch.float32 and torch.equal(p, weights[name]) for name, p in policy.trainable())
    before, after = load_file(start / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert {n: t.dtype for n, t in after.items()} == {n: t.dtype for n, t in before.items()}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == str(stored).removeprefix("torch.")
    again = load(tmp_path / "out", precision="fp32")
    round_to(dtypes_to_save(policy.model, policy.stored))
    assert torch.equal(logp(again, trees(SHAPES)), logp(policy, trees(SHAPES)))


def test_tensors_of_several_dtypes_keep_theirs(model_folder: Build, tmp_path: Path) -> None:
    start = model_folder(dtype=torch.bfloat16)
    tensors = load_file(start / "model.safetensors")
    tensors["model.layers.0.input_layernorm.weight"] = tensors["model.layers.0.input_layernorm.weight"].float()
    save_file(tensors, start / "model.safetensors", metadata={"format": "pt"})
    save(load(start, precision="fp32"), tmp_path / "out")
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert {n for n, t in saved.items() if t.dtype == torch.float32} == {"model.layers.0.input_layernorm.weight"}


@pytest.mark.parametrize(("dtype", "expected"), [("fp32", torch.float32), ("fp16", torch.float16)])
def test_another_dtype_is_a_choice(model_folder: Build, tmp_path: Path, dtype: Any, expected: torch.dtype) -> None:
    save(load(model_folder(dtype=torch.bfloat16), precision="fp32"), tmp_path / "out", dtype=dtype)
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {expected}


def test_what_float16_cannot_hold_stays_in_float32(model_folder: Build, tmp_path: Path) -> None:
    policy = load(model_folder(dtype=torch.float16), precision="fp32")
    with torch.no_grad():
        policy.base.model.norm.weight[3] = 1e5
    save(policy, tmp_path / "out")
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert {n for n, t in saved.items() if t.dtype == torch.float32} == {"model.norm.weight"}
    assert saved["model.norm.weight"][3] == 1e5


def test_adapters_are_saved_as_their_start_is_stored(model_folder: Build, tmp_path: Path) -> None:
    policy = load(model_folder(dtype=torch.bfloat16), precision="bf16", frozen=True)
    attach_lora(policy, LoraSpec(r=2), seed=0)

    def dtypes(folder: str) -> set[torch.dtype]:
        return {t.dtype for t in load_file(tmp_path / folder / "adapter_model.safetensors").values()}

    save(policy, tmp_path / "new")
    save(policy, tmp_path / "wide", dtype="fp32")
    assert (dtypes("new"), dtypes("wide")) == ({torch.bfloat16}, {torch.float32})
    assert {p.dtype for _, p in policy.trainable()} == {torch.float32}
    for folder in ("new", "wide"):
        save(load(tmp_path / folder, precision="fp32"), tmp_path / f"{folder} again")
        assert dtypes(f"{folder} again") == dtypes(folder)
