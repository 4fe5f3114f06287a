"""The GPU benchmark, run here: the same functions on the CPU, a tiny model, this process instead of new ones."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_parts, side_prospect
from benchmarks.marks import Marks, commit
from prospect.engine import attention


def test_it_measures_and_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prospect for real; a peer that runs out of memory until its micro-batch is small enough, and one that breaks."""
    tried = []

    def child(side: str, path: Path, environment: dict[str, str], limit: float) -> str:
        job = json.loads(path.read_text())
        if side == "trl installed":
            return "failed: ImportError"
        if side == "trl best":
            tried.append(job["settings"]["per_device_train_batch_size"])
            if tried[-1] > 1:
                return "failed: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate"
            job["options"] = {}
        side_prospect.timed(job, Marks(Path(job["marks"]), job["name"]))
        return ""

    monkeypatch.setattr(gpu, "child", child)
    monkeypatch.setattr(gpu, "importable", lambda environment: {"trl": "1.16.0"})
    work, out = tmp_path / "work", tmp_path / "out"
    gpu.main(["--device", "cpu", "--tiny", "--work", str(work), "--out", str(out)])
    found = json.loads((out / "gpu.json").read_text())
    ours, best, lean, installed = found["cells"]
    assert lean["side"] == "prospect lean" and lean["steps_rate"] > 0 and lean["token_budget"] == 8192
    assert ours["side"] == "prospect" and ours["steps_rate"] > 0 and ours["utilisation"] > 0
    assert tried == [4, 2, 1] and best["settings"]["settings"]["gradient_accumulation_steps"] == 4
    assert installed["failed"] == "failed: ImportError"
    page = (out / "gpu.md").read_text()
    assert "| tiny | prospect | " in page and "| tiny | trl installed | failed: ImportError |" in page
    assert {cell["commit"] for cell in found["cells"]} == {commit()} and f"Prospect at {commit()}" in page
    assert found["versions"] == {name: version(name) for name in ("torch", "transformers")} | {"trl": "1.16.0"}

    def done(side: str, path: Path, environment: dict[str, str], limit: float) -> str:
        side_prospect.timed(json.loads(path.read_text()), Marks(path.parent / "marks", side))
        return ""

    monkeypatch.setattr(gpu, "child", done)
    join = ["--join", str(out / "gpu.json"), "--commit", "later"]
    gpu.main(["--device", "cpu", "--tiny", "--work", str(work), "--out", str(out), *join])
    joined = json.loads((out / "gpu.json").read_text())
    assert joined["cells"][:3] == found["cells"][:3], "what was measured is not measured again; what failed is"
    assert joined["cells"][3]["commit"] == "later" and joined["cells"][3]["steps_rate"] > 0
    assert joined["left_out"] == [] and joined["peak"] == found["peak"]

    gpu.main(["--device", "cpu", "--tiny", "--work", str(work), "--out", str(out), "--minutes", "0"])
    assert json.loads((out / "gpu.json").read_text())["left_out"] == [
        "prospect tiny",
        "trl best tiny",
        "prospect lean tiny",
        "trl installed tiny",
    ]


def test_the_median_step_counts() -> None:
    """Two steps warm up; of 10, 2 and 15 tokens a second the middle."""
    assert gpu.median_rate({"step_tokens": [9, 9, 10, 10, 30], "step_seconds": [9, 9, 1, 5, 2]}, 2) == 10


def test_what_the_sides_are_told() -> None:
    assert list(gpu.sides(16, 32, set())) == ["prospect", "prospect lean"]
    every = gpu.sides(16, 32, {"trl", "liger_kernel", "cut_cross_entropy"})
    sides = ["prospect", "trl best", "prospect lean", "trl installed", "trl best, liger", "prospect fused"]
    assert list(every) == sides
    for name in ("trl best", "trl installed"):
        settings = every[name]["settings"]
        assert settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"] == 32
    assert gpu.halved({"options": {}}) == {}


@pytest.mark.parametrize("branches", [1, 4])
def test_all_attentions_compute_the_same(branches: int) -> None:
    packed = gpu_parts.packed_trees(torch.device("cpu"), True, branches)
    torch.manual_seed(0)
    states = [torch.randn(1, heads, packed.tokens, 16) for heads in (4, 2, 2)]
    blocks = gpu_parts._tree(states, packed, False)
    flex = gpu_parts._flex(states, gpu_parts._block_mask(packed), vars(gpu_parts)["flex_attention"])
    torch.testing.assert_close(flex, blocks, rtol=0, atol=1e-5)
    assert vars(attention)["suits"](states[0], states[2], torch.bfloat16, None) is False
