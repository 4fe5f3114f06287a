"""Which settings a run gets, and that resuming never changes them in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prospect.errors import ConfigError
from prospect.runfolder import settle
from prospect.train.config import TrainConfig, to_dict


def started(folder: Path, **options: Any) -> TrainConfig:
    """A run folder as far as `settle` looks, and the config it was started with."""
    config = TrainConfig(model="m", data="d.jsonl", out=str(folder), **options)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"config": to_dict(config), "model": {}, "data": {}}))
    return config


def test_resume_takes_the_settings_of_the_run(tmp_path: Path) -> None:
    config = started(tmp_path / "run", epochs=2, track=("wandb",), loss_args={"beta": 0.2})
    for again in ({}, {"epochs": 2}, {"data": "(in memory)"}, {"data": "d.jsonl", "loss_args": {"beta": 0.2}}):
        found, written = settle(TrainConfig(out=config.out, resume=True, **again))
        assert found == TrainConfig(**{**to_dict(config), "track": ("wandb",), "resume": True})
        assert written is not None


@pytest.mark.parametrize(
    "change", [{"epochs": 3}, {"data": "other.jsonl"}, {"loss_args": {"beta": 0.3}}, {"lora": "r=4"}]
)
def test_resume_refuses_other_settings(tmp_path: Path, change: dict[str, Any]) -> None:
    config = started(tmp_path / "run", epochs=2, loss_args={"beta": 0.2})
    with pytest.raises(ConfigError, match=rf"where {next(iter(change))} is .*, not .*Leave it out"):
        settle(TrainConfig(out=config.out, resume=True, **change))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model_type": "llama"}', '{"config": 1, "model": {}}'])
def test_resume_where_there_is_no_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match="there is nothing to resume"):
        settle(TrainConfig(out=str(tmp_path), resume=True))
