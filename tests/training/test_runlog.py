"""What a run logs: metrics.jsonl that survives, trackers that may fail without taking the run along."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prospect.errors import ConfigError, MissingExtra
from prospect.run import train
from prospect.training.config import TRACKERS, TrainConfig
from prospect.training.runlog import RunLog, read_metrics
from tests.helpers.training import thumbs, write_rows


class Tracker:
    """Stands for the library wandb and for a run of it."""

    def __init__(self) -> None:
        self.sent: list[tuple[dict[str, Any], int]] = []
        self.finished = False
        self.fault: Exception | None = None

    def init(self, **values: Any) -> Tracker:
        self.started = values
        return self

    def log(self, numbers: dict[str, Any], step: int) -> None:
        if self.fault is not None:
            raise self.fault
        self.sent.append((numbers, step))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Tracker:
    fake = Tracker()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_a_tracker_gets_the_numbers_and_nothing_else(tmp_path: Path, wandb: Tracker) -> None:
    log = RunLog(tmp_path, track=("wandb",), config={"loss": "kto"})
    log.log("step", step=1, loss=0.5, z0_se=float("nan"), z0=None)
    log.say("mind the gap", warning=True)
    log.close()
    assert wandb.started == {"project": "prospect", "name": tmp_path.name, "config": {"loss": "kto"}}
    assert wandb.sent == [({"step/loss": 0.5}, 1)]
    assert wandb.finished


def test_a_tracker_that_fails_is_left_out_and_said(tmp_path: Path, wandb: Tracker) -> None:
    log = RunLog(tmp_path, track=("wandb",))
    wandb.fault = ConnectionError("no route to host")
    for step in (1, 2):
        log.log("step", step=step, loss=0.5)
    log.close()
    warnings = [m["message"] for m in log.metrics if m["event"] == "warning"]
    assert warnings == ["--track wandb stopped working and is left out from here on: no route to host"]
    assert [m["step"] for m in read_metrics(log.path) if m["event"] == "step"] == [1, 2]
    assert not wandb.finished


def test_a_tracker_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise RuntimeError("no API key")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    with pytest.raises(ConfigError, match="--track wandb cannot start: no API key"):
        RunLog(tmp_path, track=("wandb",))


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_tracker_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else name, None)
    with pytest.raises(MissingExtra, match=rf'pip install "prospect-kto\[{name}\]"'):
        RunLog(tmp_path, track=(name,))


def test_an_unknown_tracker_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match='no tracker "wanbd".*Did you mean "wandb"'):
        TrainConfig(track=("wanbd",))


def test_rewinding_forgets_later_steps_and_keeps_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunLog(tmp_path)
    for step in range(4):
        log.log("step", step=step)
    before = log.path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            log.rewind(2)
    assert log.path.read_bytes() == before
    RunLog(tmp_path).rewind(2)
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [0, 1, 2]


def test_lines_whose_keys_a_disk_has_changed_are_left_out(model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "thumbs.jsonl", thumbs(16))
    options: dict[str, Any] = {"precision": "fp32", "batch_size": 8, "samples": 0, "save_every": 1}
    train(model, data, tmp_path / "run", **options)
    path = tmp_path / "run" / "metrics.jsonl"
    for old, new in (
        ('"event": "step"', '"evenu": "step"'),
        ('"step": 1', '"step": "1"'),
        ('"event"', '"event": 3, "e"'),
    ):
        whole = path.read_text()
        path.write_text(whole.replace(old, new, 1))
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000002")
        train(out=tmp_path / "run", resume=True)
        assert all(isinstance(line["event"], str) for line in read_metrics(path))
        assert [line["step"] for line in read_metrics(path) if line["event"] == "step"][-1] == 2


def test_a_log_file_gets_ten_lines_of_progress_and_no_empty_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RunLog(tmp_path)
    with log.bar("train", 1000) as bar:
        for step in range(1, 1001):
            bar(step, f"loss {step}")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"train {step}/1000  loss {step}" for step in range(100, 1001, 100)]
