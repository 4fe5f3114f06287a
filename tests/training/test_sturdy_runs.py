"""What must not end a run, and what a run says where it cannot go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, MambaConfig, MambaForCausalLM

from prospect import run as run_module
from prospect.engine.load import load
from prospect.engine.lora import merge
from prospect.errors import RunError
from prospect.run import train
from prospect.training import batch, density, loop
from prospect.training import step as job_module
from tests.helpers.training import MakeJob, gradients, thumbs

FAST: dict[str, Any] = {"precision": "fp32", "batch_size": 8, "learning_rate": 1e-2, "max_steps": 2}


def test_samples_that_fail_are_a_warning(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise AttributeError("'MambaCausalLMOutput' object has no attribute 'past_key_values'")

    monkeypatch.setattr(run_module, "generate", broken)
    run = train(model, thumbs(16), tmp_path / "run", **FAST)
    assert (run.folder / "model" / "model.safetensors").exists() and (run.folder / "report.html").exists()
    warnings = [m["message"] for m in run.metrics if m["event"] == "warning"]
    assert [w for w in warnings if w.startswith("no samples after step 2: AttributeError: 'MambaCausal")]


def test_out_of_memory_ends_in_words(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has a total capacity ...")

    monkeypatch.setattr(loop, "make_optimizer", broken)
    with pytest.raises(RunError, match=r"out of memory: CUDA out of memory\. What was saved .* --token-budget, --lora"):
        train(model, thumbs(16), tmp_path / "run", **FAST, samples=0)
    assert not (tmp_path / "run").exists()  # before the first step nothing is worth keeping, and --out is free again


def test_a_run_without_a_cache_says_so_and_is_the_same(
    model: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {**FAST, "samples": 0, "eval_fraction": 0.2}
    kept = train(model, thumbs(16), tmp_path / "kept", **options)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PROSPECT_CACHE", str(tmp_path / "file" / "cache"))
    lost = train(model, thumbs(16), tmp_path / "lost", **options)
    assert [m for m in lost.metrics if "file/cache cannot be written" in str(m.get("message"))]
    assert not [m for m in kept.metrics if "cannot be written" in str(m.get("message"))]
    one, two = (load_file(run.folder / "model" / "model.safetensors") for run in (kept, lost))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert kept.evaluate(thumbs(8, seed=5)) == lost.evaluate(thumbs(8, seed=5))


def test_everything_that_is_kept_follows_the_cache_that_was_named(model: Path, tmp_path: Path, cache: Path) -> None:
    train(model, thumbs(16), tmp_path / "run", **FAST, cache=str(tmp_path / "named"))
    assert {path.name for path in (tmp_path / "named").iterdir()} >= {"digests", "reference", "tokens"}
    assert not cache.exists()


@pytest.mark.parametrize("lora", [None, "r=2,targets=in_proj+x_proj"])
def test_a_model_without_attention_trains_answers_and_is_measured(
    model: Path, tmp_path: Path, lora: str | None
) -> None:
    """Mamba: no positions, no cache of keys, no heads."""
    folder = tmp_path / "mamba"
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    config = MambaConfig(vocab_size=43, hidden_size=32, state_size=8, num_hidden_layers=2, initializer_range=0.3)
    MambaForCausalLM(config).save_pretrained(folder)
    run = train(folder, thumbs(24), tmp_path / "run", eval_fraction=0.3, lora=lora, sample_tokens=4, **FAST)
    warnings = [m["message"] for m in run.metrics if m["event"] == "warning"]
    assert not [w for w in warnings if "samples" in w]
    samples = [json.loads(line) for line in (run.folder / "samples.jsonl").read_text().splitlines()]
    assert {sample["step"] for sample in samples} == {0, 2}
    assert run.policy.path == "padded" and load(run.folder / "model", precision="fp32").path == "padded"
    if lora:
        merge(run.folder / "model", tmp_path / "merged")
        assert load(tmp_path / "merged", precision="fp32").architecture == "MambaForCausalLM"


@pytest.mark.parametrize("factor", [1, 4])
def test_density_weights_and_steps_need_no_more_memory_than_there_is(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, factor: int
) -> None:
    """On a CPU it is the allocator that refuses. On a GPU passes without gradients take four times the tokens."""
    job, tried = make_job(thumbs(12)), []
    monkeypatch.setitem(job_module.NO_GRAD_FACTOR, job.policy.device.type, factor)
    expected, gradient = density.embeddings(job.policy, job.dataset), gradients(job)[0]

    def short_of_memory(original: Any) -> Any:
        def forward(policy: Any, trees: Any, **options: Any) -> Any:
            tried.append(len(trees))
            if len(trees) > 3:
                raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
            return original(policy, trees, **options)

        return forward

    for module in (density, batch):
        monkeypatch.setattr(module, "forward", short_of_memory(module.forward))
    torch.testing.assert_close(
        torch.from_numpy(density.embeddings(job.policy, job.dataset)), torch.from_numpy(expected)
    )
    assert tried[0] == 12 > max(tried[1:])
    # z0's answers run beside training's, in a pass of their own
    monkeypatch.setattr(job_module, "on_trees", lambda *_: False)
    for name, value in gradients(job)[0].items():
        torch.testing.assert_close(value, gradient[name], rtol=0, atol=1e-10)
    assert job.token_budget < 4096
