"""Whole runs: short options, what a run has written without what a clock decides, and runs that must be the same."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prospect.run import Run
from prospect.training import loop

FAST: dict[str, Any] = {"precision": "fp32", "batch_size": 8, "learning_rate": 1e-2, "samples": 1, "sample_tokens": 4}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def same_bits(a: Path, b: Path) -> None:
    one, two = weights(a), weights(b)
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def steps(run: Run | Path) -> list[dict[str, Any]]:
    """The logged steps without what a clock decides."""
    lines = (run if isinstance(run, Path) else run.folder).joinpath("metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    clocked = ("seconds", "tokens_per_second", "utilisation")
    return [{k: v for k, v in m.items() if k not in clocked} for m in found if m["event"] == "step"]


OPTIONS: dict[str, Any] = FAST | {
    "save_every": 2,
    "eval_fraction": 0.25,
    "eval_every": 3,
    "keep_best": True,
    "samples": 2,
}


def stop_at(patch: pytest.MonkeyPatch, step: int, *signals: int) -> None:
    """Send the signals (SIGINT) to this process as it begins a step."""
    original = vars(loop)["step_gradient"]

    def interrupt(job: Any, now: Any, *more: Any, **options: Any) -> Any:
        if now.index == step:
            for number in signals or (signal.SIGINT,):
                os.kill(os.getpid(), number)
        return original(job, now, *more, **options)

    patch.setattr(loop, "step_gradient", interrupt)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def events(folder: Path, *names: str) -> list[dict[str, Any]]:
    """The logged events of these names, without what a clock or a machine decides."""
    clocked = ("seconds", "tokens_per_second", "utilisation", "matmul_flops_per_second")
    found = [line for line in lines(folder / "metrics.jsonl") if line["event"] in names]
    return [{k: v for k, v in line.items() if k not in clocked} for line in found]


def same_run(folder: Path, whole: Path) -> None:
    """The same weights, steps, measurements and answers, each once."""
    one, two = (load_file(f / "model" / "model.safetensors") for f in (folder, whole))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    for name in ("step", "eval", "preflight", "device", "end"):
        assert events(folder, name) == events(whole, name), name
    assert len(events(folder, "reference")) == 1
    assert lines(folder / "samples.jsonl") == lines(whole / "samples.jsonl")
    parts = [json.loads((f / "evaluation.json").read_text()) for f in (folder, whole)]
    assert all(parts[0][name] == parts[1][name] for name in ("before", "after"))
