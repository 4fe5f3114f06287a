"""Other packages' kernels, with stand-ins for them: when they are asked, what they are told, who checks them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.llama import modeling_llama

from prospect.engine import checks, device, reference
from prospect.engine.head import Head
from prospect.engine.load import load
from prospect.engine.packing import forward
from prospect.engine.reference import ReferenceTable
from prospect.errors import ConfigError, MissingExtra, ModelError

Build = Callable[..., Any]
M, H, V = 13, 8, 29
asked: list[dict[str, Any]] = []


def kernel(
    e: Tensor, c: Tensor, targets: Tensor, softcap: Any = None, reduction: str = "", filter_eps: Any = "high"
) -> Tensor:
    """What the package's plain implementation computes, with the arguments of its version 25.1."""
    assert e.dtype == c.dtype == torch.bfloat16 and reduction == "none"
    asked.append({"filter_eps": filter_eps})
    z = e.float() @ c.float().T
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    return functional.cross_entropy(z, targets, reduction="none")


def later_kernel(*args: Any, accum_e_fp32: bool = False, accum_c_fp32: bool = False, **options: Any) -> Tensor:
    """Later ones can sum gradients in float32."""
    found = kernel(*args, **options)
    asked[-1] |= {"exact": accum_e_fp32 and accum_c_fp32}
    return found


@pytest.fixture(params=[kernel, later_kernel])
def package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    module = ModuleType("cut_cross_entropy")
    vars(module)["linear_cross_entropy"] = request.param
    monkeypatch.setitem(sys.modules, "cut_cross_entropy", module)
    device._sums_exactly.cache_clear()
    asked.clear()
    yield request.param
    device._sums_exactly.cache_clear()


def inputs(bias: bool = False) -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    return nn.Linear(H, V, bias=bias), torch.randn(M, H, requires_grad=True), torch.randint(V, (M,))


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_values_and_gradients_are_those_of_the_chunked_head(package: Any, softcap: float | None, scale: float) -> None:
    module, hidden, targets = inputs()
    found = []
    for with_kernel in (True, False):
        head = Head(module, V, scale, softcap, fused=with_kernel)
        logp, sum_p2 = head.logp(hidden, targets, compute_dtype=torch.bfloat16, want_sum_p2=False)
        assert sum_p2 is None and logp.dtype == torch.float32
        found.append((logp, *torch.autograd.grad(logp.sin().sum(), (hidden, module.weight))))
    for a, b in zip(*found, strict=True):
        assert float((a - b).detach().norm() / b.detach().norm()) < 0.02
    # Version 25.1 would sum gradients in bfloat16, so it was not asked for any.
    assert asked == ([{"filter_eps": None, "exact": True}] if package is later_kernel else [])
    with torch.no_grad():
        quiet, _ = Head(module, V, scale, softcap, True).logp(
            hidden, targets, compute_dtype=torch.bfloat16, want_sum_p2=False
        )
    assert asked[-1]["filter_eps"] is None
    torch.testing.assert_close(quiet, found[0][0].detach(), rtol=0, atol=0.05)


@pytest.mark.parametrize("why", ["p2", "float32", "scale", "bias", "adapter"])
def test_where_it_is_not_asked(package: Any, why: str) -> None:
    module, hidden, targets = inputs(bias=why == "bias")
    scale = 0.3 if why == "scale" else 1.0
    kind = torch.float32 if why == "float32" else torch.bfloat16
    head = Head(nn.Sequential(module) if why == "adapter" else module, V, scale, fused=True)
    with torch.no_grad():
        head.logp(hidden, targets, compute_dtype=kind, want_sum_p2=why == "p2")
    assert not asked


def test_off_cuda_and_not_installed() -> None:
    for choice in ("auto", "torch"):
        assert device.pick_kernels(choice, torch.device("cpu")) == "torch"
    with pytest.raises(ConfigError, match="runs on CUDA only, and this is cpu"):
        device.pick_kernels("fused", torch.device("cpu"))
    if not (find_spec("liger_kernel") and find_spec("cut_cross_entropy")):
        with pytest.raises(MissingExtra, match=r"prospect-kto\[fused\]"):
            device.pick_kernels("fused", torch.device("cuda"))


@pytest.fixture(params=[0.0, 1e-2])
def liger(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Like liger it changes the instance and the module of its class; its norm is off by the parameter."""
    told: dict[str, Any] = {"off": request.param}

    class OtherNorm(nn.Module):
        pass

    def patched(self: Any, x: Tensor) -> Tensor:
        return self.weight * functional.rms_norm(x, x.shape[-1:], eps=self.variance_epsilon) * (1 + request.param)

    def apply(model: Any, **options: bool) -> None:
        told.update(options)
        monkeypatch.setattr(modeling_llama, "LlamaRMSNorm", OtherNorm)
        for module in model.modules():
            if hasattr(module, "variance_epsilon"):
                module.forward = MethodType(patched, module)

    module = ModuleType("liger_kernel.transformers.monkey_patch")
    vars(module)["_apply_liger_kernel_to_instance"] = apply
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("prospect.engine.load.pick_kernels", lambda kernels, device: "fused")
    return told


def test_layers_are_changed_before_the_checks(model_folder: Build, trees: Build, liger: dict[str, Any]) -> None:
    """A kernel that moves log-probs is refused; a right one is in, and the class is as it was."""
    folder, norm = model_folder(), modeling_llama.LlamaRMSNorm
    if liger["off"]:
        with pytest.raises(ModelError, match="liger-kernel move the log-probs of LlamaForCausalLM"):
            load(folder, precision="fp32", device="cpu", kernels="fused")
        assert modeling_llama.LlamaRMSNorm is norm
        return
    policy = load(folder, precision="fp32", device="cpu", kernels="fused")
    assert modeling_llama.LlamaRMSNorm is norm
    assert (policy.kernels, policy.head.fused, policy.path) == ("fused", True, "tree")
    assert liger == {"off": 0.0, "rms_norm": True, "swiglu": True, "geglu": True} | device.NOT_ITS_HEAD
    assert "forward" in vars(policy.base.model.norm)
    with torch.no_grad():
        logp = forward(policy, trees([(3, [2, 5])])).token_logp
    assert torch.isfinite(logp).all()


def test_the_reference_table_tells_kernels_apart(
    model_folder: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "version", lambda package: "1.0")  # of packages that need not be here
    policy = load(model_folder(), precision="fp32", device="cpu")
    assert ReferenceTable(tmp_path, policy).path != ReferenceTable(tmp_path, replace(policy, kernels="fused")).path


@pytest.mark.parametrize("wrong", [False, True])
def test_kernels_of_half_precision_have_a_check_of_their_own(
    tiny: Build, monkeypatch: pytest.MonkeyPatch, wrong: bool
) -> None:
    """As on CUDA, where the checks in float32 do not meet the flash kernel: there a wrong one must not go unseen."""
    original = vars(checks)["forward_tree"]

    def half(policy: Any, branches: Any) -> Any:
        found = original(policy, branches)
        bad = wrong and policy.precision == "bf16"
        return replace(found, token_logp=found.token_logp + 1) if bad else found

    monkeypatch.setattr(checks, "_in_half", lambda policy: policy.precision == "bf16")
    monkeypatch.setattr(checks, "forward_tree", half)
    policy = tiny("mistral", "bf16")
    assert policy.path == ("padded" if wrong else "tree")
    assert ("bfloat16" in policy.path_reason) == wrong
