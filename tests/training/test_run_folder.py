"""Which settings a run gets, that resuming never changes them in silence, and that its data are examined once."""

from __future__ import annotations

import getpass
import json
import platform
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from prospect.data.options import DataOptions
from prospect.doctor import check
from prospect.doctor.check import check_run
from prospect.engine import folders
from prospect.errors import ConfigError
from prospect.feedback.load import load
from prospect.training.config import TrainConfig, to_dict
from prospect.training.run_folder import (
    digests,
    note_time,
    provenance,
    settle,
)
from tests.helpers.tokenizers import byte_level


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


def test_a_run_says_how_it_came_about_and_not_whose_it_is(tmp_path: Path) -> None:
    home = Path.home()
    facts = provenance(f"prospect train --model {home}/models/m --out=runs/first", "cpu")
    assert facts["command"] == "prospect train --model ~/models/m --out=runs/first"
    assert abs(datetime.now(UTC) - datetime.fromisoformat(facts["started"])).total_seconds() < 60
    machine = facts["hardware"]
    assert machine["cores"] >= 1 and machine["memory_gib"] > 0 and machine["processor"] and machine["system"]
    words = set(re.findall(r"[\w./~-]+", json.dumps(facts)))
    assert not words & {platform.node(), getpass.getuser(), str(home)}
    (tmp_path / "config.json").write_text(json.dumps({"config": {}, "model": {}, **facts}))
    note_time(tmp_path, 2.25, finished=False)
    stopped = json.loads((tmp_path / "config.json").read_text())
    note_time(tmp_path, 4.0, finished=True)
    ended = json.loads((tmp_path / "config.json").read_text())
    assert (stopped["finished"], stopped["seconds"]) == (None, 2.2)
    assert ended["seconds"] == 6.2 and ended["finished"] >= facts["started"]


def test_findings_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"question {i // 2}", "completion": f" {i}", "label": i % 2 == 0} for i in range(6)]
    path, made = tmp_path / "d.jsonl", []
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    original = check.check

    def counted(*args: Any, **options: Any) -> Any:
        made.append(options)
        return original(*args, **options)

    monkeypatch.setattr(check, "check", counted)
    options, tokenizer = DataOptions(max_length=64, cache=tmp_path), byte_level()

    def ask(held: Any = None, view: Any = "binary", **changes: Any) -> Any:
        return check_run(load(path), held, tokenizer, view, replace(options, **changes))

    first = ask()
    assert first == original(load(path), tokenizer=tokenizer, options=DataOptions(max_length=64), view="binary")
    assert ask() == first
    assert len(made) == 1
    for number, change in enumerate(
        ({"max_length": 3}, {"view": "text"}, {"held": load(rows)}, {"over_long": "error"}), 2
    ):
        ask(**change)
        assert len(made) == number
    path.write_text("\n" + path.read_text())  # the same rows on other lines, which the findings cite
    ask()
    assert len(made) == 6
    for kept in (tmp_path / "checks").iterdir():
        kept.write_text("{")
    assert ask().to_json()["summary"]["rows"] == 6


def test_a_reference_model_is_hashed_once(tmp_path: Path, assistant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest memo serves it, too, wherever --cache puts it."""
    config = TrainConfig(model="m", reference=str(assistant), cache=str(tmp_path / "cache"))
    first = digests(config, byte_level(), None)
    monkeypatch.setattr(folders, "_hash_tensors", lambda file: pytest.fail("the memo knows it"))
    assert digests(config, byte_level(), None) == first
