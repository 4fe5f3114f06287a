"""Merging: the same model afterwards, whatever the adapter changes, or none at all; adapters with new tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from prospect.cli.main import main
from prospect.engine import lora as adapters
from prospect.engine.load import load
from prospect.engine.lora import merge
from prospect.engine.packing import Branches, forward
from prospect.engine.weights import save
from prospect.errors import ModelError

Build = Callable[..., Any]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PROSPECT_CACHE", str(tmp_path / "cache"))


def adapter(base: Path, folder: Path, *, tokens: int = 0, embeddings: Any = "auto", **options: Any) -> Path:
    """An adapter as peft saves it, moved away from the start; with `tokens` new ones."""
    network, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    if tokens:
        tokenizer.add_tokens([f"<new{k}>" for k in range(tokens)])
        network.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    whole: Any = get_peft_model(network, LoraConfig(r=2, task_type="CAUSAL_LM", **options))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in whole.named_parameters():
            if p.requires_grad or "embed_tokens" in name or "lm_head" in name:
                p.add_(torch.randn(p.shape, generator=generator).to(p) * 0.1)
    whole.save_pretrained(str(folder), save_embedding_layers=embeddings)
    tokenizer.save_pretrained(folder)
    return folder


def logp(folder: Path, size: int = 101, precision: Any = "fp32") -> Tensor:
    """Of tokens from the whole vocabulary, the newest among them."""
    rng = np.random.default_rng(0)
    some, newest = rng.integers(size, size=12, dtype=np.int32), np.arange(size - 6, size, dtype=np.int32)
    with torch.no_grad():
        return forward(
            load(folder, precision=precision, frozen=True), [Branches(some[:3], (some[3:], newest))]
        ).token_logp


def test_a_runs_folder_stands_for_its_adapter(assistant: Path, tmp_path: Path) -> None:
    adapter(assistant, tmp_path / "run" / "model", target_modules=["q_proj"])
    written: dict[str, Any] = {"config": {}, "model": {}, "loss": {"arguments": {}}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(written))
    assert main(["merge", str(tmp_path / "run"), str(tmp_path / "merged")]) == 0
    assert (tmp_path / "merged" / "model.safetensors").exists()


LAYERS: dict[str, dict[str, Any]] = {
    "layers": {"target_modules": ["q_proj", "down_proj"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "both": {"target_modules": ["lm_head", "embed_tokens"]},
    "whole head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "whole embeddings": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "some tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 4]},
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore")
def test_a_merged_model_is_the_adapter_on_its_base(model_folder: Build, tmp_path: Path, name: str, tied: bool) -> None:
    base = model_folder("llama", tie_word_embeddings=tied)
    trained = adapter(base, tmp_path / "adapter", **LAYERS[name])
    expected = logp(trained)
    assert (expected - logp(base)).abs().max() > 0.01
    assert merge(trained, tmp_path / "merged") == 0
    torch.testing.assert_close(logp(tmp_path / "merged"), expected, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_rounding_is_told(model_folder: Build, tmp_path: Path) -> None:
    trained = adapter(model_folder(dtype=torch.bfloat16), tmp_path / "adapter", **LAYERS["layers"])
    assert 1e-4 < merge(trained, tmp_path / "merged") < 0.1
    assert merge(trained, tmp_path / "wide", dtype="fp32") == 0
    for folder, dtype in (("merged", torch.bfloat16), ("wide", torch.float32)):
        assert {t.dtype for t in load_file(tmp_path / folder / "model.safetensors").values()} == {dtype}
    torch.testing.assert_close(logp(tmp_path / "wide"), logp(trained), rtol=0, atol=1e-4)


@pytest.mark.parametrize("step", ["folding the adapter in", "writing and reading it again"])
@pytest.mark.filterwarnings("ignore")
def test_a_merge_that_makes_another_model_leaves_none(
    model_folder: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    trained = adapter(model_folder("llama", tie_word_embeddings=True), tmp_path / "adapter", **LAYERS["head"])
    if step.startswith("folding"):
        monkeypatch.setattr(adapters, "_untie", lambda base: None)
    else:
        write = vars(adapters)["write"]

        def damaged(*arguments: Any, **options: Any) -> None:
            write(*arguments, **options)
            file = arguments[2] / "model.safetensors"
            tensors = load_file(file)
            tensors["model.norm.weight"] *= 1.01
            save_file(tensors, file, metadata={"format": "pt"})

        monkeypatch.setattr(adapters, "write", damaged)
    with pytest.raises(ModelError, match=f"{step} makes another model of .*adapter: .* nats off"):
        merge(trained, tmp_path / "merged")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "adapter"}


def test_a_merged_model_ends_answers_where_the_adapter_does(model_folder: Build, tmp_path: Path) -> None:
    base = model_folder()
    (base / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "eos_token_id": 5}))
    merge(adapter(base, tmp_path / "adapter", **LAYERS["layers"]), tmp_path / "merged")
    said = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert said == {"temperature": 0.6, "eos_token_id": [5, 2]}


GROWN: dict[str, dict[str, Any]] = {
    "saved whole": {**LAYERS["layers"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "saved beside": {**LAYERS["layers"], "embeddings": True},
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", GROWN)
@pytest.mark.filterwarnings("ignore")
def test_an_adapter_with_new_tokens_loads_saves_and_merges(
    model_folder: Build, tmp_path: Path, name: str, tied: bool
) -> None:
    base = model_folder("llama", tie_word_embeddings=tied)
    trained = adapter(base, tmp_path / "adapter", tokens=3, **GROWN[name])
    policy = load(trained, precision="fp32")
    assert policy.head.vocabulary == len(policy.tokenizer) == 104
    stored = load_file(trained / "adapter_model.safetensors")["base_model.model.model.embed_tokens.weight"]
    assert torch.equal(policy.base.get_input_embeddings().weight.detach().cpu(), stored)
    expected = logp(trained, 104)
    save(policy, tmp_path / "again")
    torch.testing.assert_close(logp(tmp_path / "again", 104), expected, rtol=0, atol=1e-6)
    merge(trained, tmp_path / "merged")
    torch.testing.assert_close(logp(tmp_path / "merged", 104), expected, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_new_tokens_without_a_head_are_refused(model_folder: Build, tmp_path: Path) -> None:
    trained = adapter(model_folder(), tmp_path / "adapter", tokens=3, embeddings=False, **LAYERS["whole embeddings"])
    with pytest.raises(ModelError, match="has 104 embeddings and no rows of the head, its base 101 of each"):
        load(trained)


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_quantised_weights_are_refused_at_the_door(model_folder: Build, tmp_path: Path, key: str) -> None:
    base = model_folder()
    trained = adapter(base, tmp_path / "adapter", **LAYERS["layers"])
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(
        json.dumps(config | {key: {"quant_method": "bitsandbytes", "load_in_4bit": True}})
    )
    for call in (lambda: load(base), lambda: load(trained), lambda: merge(trained, tmp_path / "merged")):
        with pytest.raises(ModelError, match=r"are quantised \(bitsandbytes\).*Take the model that they were made"):
            call()
