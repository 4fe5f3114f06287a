"""The checks at load find what would be wrong in silence, cost little, and leave the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from prospect.engine import attention, checks
from prospect.engine.attention import attend_blocks
from prospect.engine.checks import choose_path
from prospect.engine.load import load
from prospect.engine.packing import forward, forward_padded, forward_tree
from prospect.errors import ModelError

Build = Callable[..., Any]


@pytest.mark.parametrize("name", ["lfm2", "falcon_h1"])
def test_a_leak_between_branches_is_found(tiny: Build, name: str) -> None:
    assert "the tokens of one branch move another's" in tiny(name).path_reason


def test_sinks_are_found(tiny: Build) -> None:
    assert "packed trees are" in tiny("gpt_oss").path_reason


@pytest.mark.parametrize("window", [3, 40])
def test_a_lost_window_is_found(tiny: Build, monkeypatch: pytest.MonkeyPatch, window: int | None) -> None:
    assert tiny("mistral", sliding_window=window).path == "tree"
    monkeypatch.setattr(attention, "attend_blocks", lambda *x: attend_blocks(*x[:-1], x[-1]._replace(window=None)))
    policy = tiny("mistral", sliding_window=window)
    assert policy.path == "padded"
    assert "packed trees are" in policy.path_reason


def test_a_window_too_long_to_check_limits_the_trees(
    tiny: Build, trees: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "BUDGET", {"cpu": 10})
    policy = tiny("mistral", sliding_window=20)
    assert (policy.path, policy.checked_length) == ("tree", 20)
    assert "20 tokens" in policy.path_reason
    paths = []
    monkeypatch.setattr("prospect.engine.packing.forward_tree", lambda *a, **k: paths.append("tree"))
    monkeypatch.setattr("prospect.engine.packing.forward_padded", lambda *a, **k: paths.append("padded"))
    forward(policy, trees([(10, [3, 10])]))
    forward(policy, trees([(10, [3, 11])]))
    assert paths == ["tree", "padded"]


def test_a_model_that_refuses_packed_rows_runs_padded(tiny: Build, trees: Build) -> None:
    policy = tiny("llama")

    def strict(segments: Any = None, **inputs: Any) -> Any:
        if segments is not None:
            raise TypeError("unexpected keyword")
        return type(policy.decoder).forward(policy.decoder, **inputs)

    policy.decoder.forward = strict
    choose_path(policy)
    assert policy.path == "padded"
    assert "a packed row raises TypeError" in policy.path_reason
    assert forward(policy, trees([(3, [2])])).token_logp.isfinite().all()
    with pytest.raises(ModelError, match="cannot run on trees: a packed row raises"):
        choose_path(policy, "tree")


@pytest.mark.parametrize("engine", ["auto", "tree", "padded"])
def test_the_user_may_choose(tiny: Build, engine: str) -> None:
    policy = tiny("llama", engine=engine)
    assert policy.path == ("padded" if engine == "padded" else "tree")
    assert policy.path_reason == ("padded as asked for" if engine == "padded" else "")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["cohere", "granite", "gemma2"])
def test_scaled_and_capped_heads(tiny: Build, trees: Build, name: str, precision: str) -> None:
    policy = tiny(name, precision)
    assert policy.chunked_head
    assert (policy.head.scale, policy.head.softcap) == {
        "cohere": (0.3, None),
        "granite": (1 / 3, None),
        "gemma2": (1.0, 30.0),
    }[name]


def test_an_unknown_kind_of_logits_runs_on_the_models_own(tiny: Build, trees: Build) -> None:
    policy = tiny("granite")
    policy.head = replace(policy.head, scale=1.0)
    choose_path(policy)
    assert (policy.path, policy.chunked_head) == ("tree", False)
    assert policy.path_reason.startswith("full logits")
    branches = trees([(5, [4, 1, 9]), (2, [3])])
    found = forward(policy, branches, want_sum_p2=True)
    policy.head = replace(policy.head, scale=1 / 3)
    policy.chunked_head = True
    expected = forward_padded(policy, branches, want_sum_p2=True)
    torch.testing.assert_close(found.token_logp, expected.token_logp, rtol=0, atol=3e-6)
    torch.testing.assert_close(found.token_sum_p2, expected.token_sum_p2, rtol=0, atol=3e-6)
    found.token_logp.sum().backward()
    assert all(p.grad is not None for _, p in policy.trainable())


def test_a_model_that_gives_nan_is_refused_by_the_name_of_its_tensor(model_folder: Build) -> None:
    folder = model_folder()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"gives NaN .* before any training: .* its tensor model\.layers\.1\.mlp\.up_proj"
    ):
        load(folder, precision="fp32")


def test_a_module_that_makes_nan_is_named(tiny: Build) -> None:
    policy = tiny("llama")
    policy.base.model.layers[1].post_attention_layernorm.forward = lambda x: x / 0 * 0
    with pytest.raises(ModelError, match=r"all its tensors are finite, .* module model\.layers\.1\.post_attention"):
        choose_path(policy)


def test_a_model_that_cannot_be_run_is_refused_with_words(tiny: Build) -> None:
    policy = tiny("llama")
    policy.base.model.layers[1].mlp.down_proj.weight.data = torch.zeros(3, 3)
    with pytest.raises(ModelError, match="LlamaForCausalLM cannot be run: RuntimeError: .* Prospect trains causal"):
        choose_path(policy)


def test_a_head_that_cannot_run_alone_leaves_the_models_own_logits(tiny: Build, trees: Build) -> None:
    policy = tiny("llama")
    policy.head = replace(policy.head, module=torch.nn.Linear(3, 101, bias=False))
    choose_path(policy)
    assert not policy.chunked_head and policy.path_reason.startswith("full logits, since the head alone raises Runtime")
    assert forward(policy, trees([(3, [2])])).token_logp.isfinite().all()


def out_of_memory_beyond(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """Packed rows of more tokens do not fit."""

    def small(policy: Any, trees: Any, **options: Any) -> Any:
        if sum(len(tree.prompt) + sum(map(len, tree.completions)) for tree in trees) > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward_tree(policy, trees, **options)

    monkeypatch.setattr(checks, "forward_tree", small)


def test_running_out_of_memory_is_no_failed_check(model_folder: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    out_of_memory_beyond(monkeypatch, 5)
    with pytest.raises(ModelError, match=r"does not fit into memory\. Choose --precision bf16"):
        load(model_folder(), precision="fp32", device="cpu")


def test_where_memory_ends_beyond_a_window_the_trees_are_shorter(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    out_of_memory_beyond(monkeypatch, 60)
    policy = tiny("mistral", sliding_window=40)
    assert (policy.path, policy.checked_length) == ("tree", 40)
    assert "beyond the attention window of 40 tokens" in policy.path_reason


def test_where_widening_does_not_fit_nothing_has_changed(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny("llama")
    policy.base.to(torch.bfloat16)
    policy.precision = "bf16"
    widened = []

    def short_of_memory(tensor: torch.Tensor) -> torch.Tensor:
        widened.append(tensor)
        if len(widened) > 3:
            raise torch.OutOfMemoryError
        return tensor.to(torch.float32)

    monkeypatch.setattr(torch.Tensor, "float", short_of_memory)
    with checks._exact(policy) as tolerance:
        assert tolerance == checks.TOLERANCE["bf16"]
        assert {p.dtype for p in policy.model.parameters()} == {torch.bfloat16}
    assert len(widened) == 4


def test_checks_run_in_float32_and_leave_half_precision_as_it_was(tiny: Build, trees: Build) -> None:
    policy = tiny("llama")
    policy.base.to(torch.bfloat16)
    policy.precision = "bf16"
    before = {name: p.clone() for name, p in policy.model.named_parameters()}
    seen = []
    hook = policy.decoder.norm.register_forward_hook(lambda *a: seen.append(a[2].dtype))
    choose_path(policy)
    hook.remove()
    assert set(seen) == {torch.float32}
    assert (policy.path, policy.precision) == ("tree", "bf16")
    for name, parameter in policy.model.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
    with torch.no_grad():
        branches = trees([(5, [4, 1, 9]), (2, [3])])
        a, b = (f(policy, branches).token_logp for f in (forward_tree, forward_padded))
    assert a.dtype == torch.float32
    assert (a - b).abs().mean() < 0.05
