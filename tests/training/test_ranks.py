"""Two ranks without anybody who looks after them: where one fails, both end soon and say why."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from prospect.errors import ConfigError
from prospect.training import ranks, setup
from prospect.training.config import TrainConfig
from tests.helpers.training import thumbs, write_rows

WAIT = 60
"""Seconds within which all ranks must have ended."""

FAULTS = {
    "the folder is in use": ("", "exists and is not empty"),
    "deaf": (  # a rank that stays alive and never comes to the meeting
        "from prospect.training import loop\n"
        "import time\n"
        "original = loop.step_gradient\n"
        "def gradient(job, step, *more, **options):\n"
        "    if rank == 1 and step.index == 2:\n"
        "        raise ValueError('the second rank has a fault')\n"
        "    return original(job, step, *more, **options)\n"
        "loop.step_gradient = gradient\n"
        "linger = 8\n",
        "the second rank has a fault",
    ),
    "killed": (
        "from prospect.training import loop\n"
        "original = loop.step_gradient\n"
        "def gradient(job, step, *more, **options):\n"
        "    if rank == 1 and step.index == 2:\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return original(job, step, *more, **options)\n"
        "loop.step_gradient = gradient\n",
        "has lost another rank",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_all_ranks_end_where_one_fails(model: Path, tmp_path: Path, fault: str) -> None:
    data = write_rows(tmp_path / "thumbs.jsonl", thumbs(32))
    patch, reason = FAULTS[fault]
    if not patch:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "notes.txt").write_text("mine")
    code = f"""
import os, sys, time
rank, linger = int(os.environ["RANK"]), 0
from prospect.training import ranks
ranks.PATIENCE, ranks.LAST_WORD = 3.0, {8.0 if fault == "the folder is in use" else 1.0}
{patch}
import prospect
try:
    fast = {{"precision": "fp32", "device": "cpu", "batch_size": 8, "samples": 0}}
    prospect.train({str(model)!r}, {str(data)!r}, {str(tmp_path / "run")!r}, **fast)
except BaseException as error:
    print(type(error).__name__, error, file=sys.stderr, flush=True)
    time.sleep(linger if rank == 1 else 0)
    os._exit(3)
"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fixed = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | fixed | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        said = [process.communicate(timeout=WAIT + 30)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert time.monotonic() - started < WAIT + 30
    assert all(process.returncode != 0 for process in processes), said
    assert all(reason in text for text, process in zip(said, processes, strict=True) if process.returncode != -9), said


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: pytest.fail("there is no such GPU"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ConfigError, match=r"process 2 .* there are 1: start 1 with torchrun --nproc-per-node=1, or .*"):
        ranks.start("auto")


def test_each_rank_has_its_gpu_and_the_setting_stays_as_it_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    names = ("cuda", "auto", "cuda:0", "cpu")
    assert [ranks.device(name) for name in names] == list(names)  # one process: as it was asked for
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert [ranks.device(name) for name in names] == ["cuda:1", "cuda:1", "cuda:1", "cpu"]
    seen: dict[str, str] = {}

    def load(name: str, *, device: str, **_: Any) -> None:
        seen[name] = device

    monkeypatch.setattr(setup, "load", load)
    config = TrainConfig(device="cuda")
    setup.load_policy(config, "a-model", frozen=True)
    assert (seen, config.device) == ({"a-model": "cuda:1"}, "cuda")
