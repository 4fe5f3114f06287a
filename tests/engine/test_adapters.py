"""LoRA: starts where the model is, trains nothing else, is saved small, loaded as a starting point, and merged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from prospect.engine import folders
from prospect.engine.load import load
from prospect.engine.lora import (
    LoraSpec,
    attach_lora,
    merge,
    parse_lora,
)
from prospect.engine.packing import Branches, forward
from prospect.engine.policy import Policy
from prospect.engine.weights import save
from prospect.errors import ConfigError, ModelError

Build = Callable[..., Any]

SHAPES = [(5, [4, 1, 9]), (1, [1]), (9, [2, 7])]


def logp(policy: Policy, branches: list[Branches]) -> Tensor:
    with torch.no_grad():
        return forward(policy, branches).token_logp


def train(policy: Policy, branches: list[Branches], steps: int = 2) -> None:
    optimizer = torch.optim.SGD([p for _, p in policy.trainable()], lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        (-forward(policy, branches).token_logp.sum()).backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mixtral"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_starts_exactly_where_the_model_is(model_folder: Build, trees: Build, name: str, precision: str) -> None:
    policy = load(model_folder(name, dtype=torch.bfloat16), precision=precision, frozen=True)
    branches = trees(SHAPES)
    before = logp(policy, branches)
    weights = {id(p) for p in policy.model.parameters()}
    attach_lora(policy, LoraSpec(r=4), seed=0)
    assert torch.equal(logp(policy, branches), before)
    assert policy.path == "tree"
    assert all("lora_" in n and p.dtype == torch.float32 and id(p) not in weights for n, p in policy.trainable())
    frozen = {p.dtype for p in policy.model.parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16 if precision == "bf16" else torch.float32}
    train(policy, branches)
    assert logp(policy, branches).sum() > before.sum()


def test_default_targets_are_all_linear_layers_but_the_head(model_folder: Build) -> None:
    policy = load(model_folder(), precision="fp32", frozen=True)
    attach_lora(policy, LoraSpec(r=4), seed=0)
    adapted = {name.rsplit(".lora_", 1)[0].rsplit(".", 1)[1] for name, _ in policy.trainable()}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(policy.trainable()) == 2 * 2 * 7
    layer = policy.base.model.layers[0].self_attn.q_proj
    assert layer.scaling == {"default": 2.0}
    assert not [m for m in policy.model.modules() if isinstance(m, torch.nn.Dropout) and m.p]


def test_the_seed_draws_the_adapter_and_nothing_else(model_folder: Build) -> None:
    drawn = []
    for seed in (0, 0, 1):
        policy = load(model_folder(), precision="fp32", frozen=True)
        torch.manual_seed(123)
        attach_lora(policy, LoraSpec(r=4), seed)
        drawn.append((torch.cat([p.flatten() for _, p in policy.trainable()]), torch.rand(1)))
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert not torch.equal(drawn[0][0], drawn[2][0])
    assert drawn[0][1] == drawn[1][1] == drawn[2][1]


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("q_proj", "lm_head")])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_equal_those_of_the_padded_oracle(
    model_folder: Build, trees: Build, targets: tuple[str, ...], checkpointed: bool
) -> None:
    policy = load(model_folder(), precision="fp64", frozen=True)
    attach_lora(policy, LoraSpec(r=3, targets=targets), seed=0)
    branches, gradients = trees(SHAPES), []
    train(policy, branches)  # leave B = 0
    ways: list[tuple[Any, bool]] = [("padded", False), ("tree", True)]
    for path, chunked_head in ways:
        policy.path, policy.chunked_head = path, chunked_head
        policy.model.zero_grad()
        policy.checkpoint_activations(checkpointed and path == "tree")
        forward(policy, branches).token_logp.sin().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in policy.trainable()})
    assert len(gradients[0]) == 2 * (4 if targets[1] == "v_proj" else 3)
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-10, atol=1e-10, msg=name)


def test_saved_adapter_is_a_starting_point_and_merges(model_folder: Build, trees: Build, tmp_path: Path) -> None:
    base = model_folder()
    policy, branches = load(base, precision="fp32", frozen=True), trees(SHAPES)
    attach_lora(policy, LoraSpec(r=4, targets=("q_proj", "down_proj")), seed=0)
    train(policy, branches)
    expected = logp(policy, branches)
    save(policy, tmp_path / "adapter")
    names = {f.name for f in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert not {"model.safetensors", "config.json", "README.md"} & names
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == (str(base), 4, 8)

    again = load(tmp_path / "adapter", precision="fp32")
    assert torch.equal(logp(again, branches), expected)
    assert again.path == "tree"
    assert [n for n, _ in again.trainable()] == [n for n, _ in policy.trainable()]
    assert not load(tmp_path / "adapter", precision="fp32", frozen=True).trainable()
    with pytest.raises(ModelError, match="is an adapter already"):
        attach_lora(again, LoraSpec(), seed=0)
    train(again, branches)
    assert not torch.equal(logp(again, branches), expected)

    merge(tmp_path / "adapter", tmp_path / "merged")
    merged = load(tmp_path / "merged", precision="fp32")
    torch.testing.assert_close(logp(merged, branches), expected, rtol=0, atol=1e-5)
    assert not folders.is_adapter(tmp_path / "merged")
    assert merged.tokenizer.chat_template == policy.tokenizer.chat_template


def test_merged_weights_keep_the_stored_dtype_and_are_rounded_once(
    model_folder: Build, trees: Build, tmp_path: Path
) -> None:
    policy, branches = load(model_folder(dtype=torch.bfloat16), precision="fp32", frozen=True), trees(SHAPES)
    attach_lora(policy, LoraSpec(r=4), seed=0)
    train(policy, branches)
    save(policy, tmp_path / "adapter", dtype="fp32")
    merge(tmp_path / "adapter", tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    whole = policy.model.merge_and_unload().state_dict()
    assert {t.dtype for t in merged.values()} == {torch.bfloat16}
    for name, tensor in merged.items():
        assert torch.equal(tensor, whole[name].to(torch.bfloat16).cpu()), name


def test_merge_refuses(model_folder: Build, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a plain model; only an adapter"):
        merge(model_folder(), tmp_path / "merged")
    with pytest.raises(ConfigError, match="exists already; nothing was written"):
        merge(tmp_path, tmp_path)


@pytest.fixture
def adapter(model_folder: Build, tmp_path: Path) -> Path:
    policy = load(model_folder(), precision="fp32", frozen=True)
    attach_lora(policy, LoraSpec(r=4), seed=0)
    save(policy, tmp_path / "adapter")
    return tmp_path / "adapter"


def edit(folder: Any, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_fingerprint_of_an_adapter_includes_its_base(adapter: Path, tmp_path: Path) -> None:
    first = folders.fingerprint(adapter, tmp_path / "cache")
    assert first != folders.fingerprint(tmp_path / "model", tmp_path / "cache")
    moved = (tmp_path / "model").rename(tmp_path / "moved")
    edit(adapter, base_model_name_or_path=str(moved))
    assert folders.fingerprint(adapter, tmp_path / "cache") == first
    edit(adapter, lora_alpha=99)
    assert folders.fingerprint(adapter, tmp_path / "cache") != first


def test_adapters_that_cannot_be_loaded(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    with pytest.raises(
        ModelError, match=r"the base model of the adapter .* cannot be loaded.*does not exist.*If it moved"
    ):
        load(adapter)
    edit(adapter, base_model_name_or_path=None)
    with pytest.raises(ModelError, match="names no base model"):
        load(adapter)
    edit(adapter, base_model_name_or_path=str(tmp_path / "elsewhere"), peft_type="IA3")
    with pytest.raises(ModelError, match="adapter of type IA3; only LoRA"):
        load(adapter)
    edit(adapter, peft_type="LORA", r=5)
    with pytest.raises(ModelError, match="peft cannot load the adapter"):
        load(adapter)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"pickled weights only \(adapter_model\.bin\)"):
        load(adapter)


def test_parse() -> None:
    assert parse_lora("r=8") == LoraSpec(8)
    assert LoraSpec(8).scale == 16
    assert parse_lora("") == LoraSpec(16, None, ("all-linear",))
    assert parse_lora(" r=4, alpha=5 ,targets=q_proj+v_proj") == LoraSpec(4, 5, ("q_proj", "v_proj"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("r=0", 'r must be a whole number above 0, not "0"'),
        ("r=a", 'not "a"'),
        ("alpha=-1", 'alpha must be a whole number above 0, not "-1"'),
        ("rank=8", r'cannot read "rank=8". Expected r=16,alpha=32,targets=q_proj\+v_proj'),
        ("alpa=8", 'Did you mean "alpha"'),
        ("dropout=0.1", 'cannot read "dropout=0.1"'),
        ("r=", 'cannot read "r="'),
        ("16", 'cannot read "16"'),
        ("r=1,r=2", 'names "r" twice'),
    ],
)
def test_parse_refuses(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_lora(text)


def test_unknown_targets(model_folder: Build) -> None:
    policy = load(model_folder(), precision="fp32", frozen=True)
    with pytest.raises(ConfigError, match="--lora targets=query"):
        attach_lora(policy, LoraSpec(targets=("query",)), seed=0)
