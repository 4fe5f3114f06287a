"""The demo at a hundredth of its size: every file it promises, and questions that really are new."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prospect.errors import ConfigError
from prospect.feedback import formats
from prospect.sandbox import users, world
from prospect.sandbox.demo import Plan, run_demo, shipped_assistant

TINY = replace(Plan(), asked=96, measured=40)
TINY = replace(TINY, options=(*TINY.options, ("epochs", 1)))


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "out"
    run_demo(out, seed=0, plan=TINY)
    return out


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_summary_says_what_was_measured(lived: Path) -> None:
    summary = json.loads((lived / "summary.json").read_text(encoding="utf-8"))
    answered = lines(lived / "answers.jsonl")
    assert summary["n"] == len(answered) == 40
    for side in ("before", "after"):
        rate, (low, high) = summary[side]["desirable_rate"], summary[side]["ci95"]
        assert rate == sum(row[f"{side}_ok"] for row in answered) / 40
        assert 0 <= low <= rate <= high <= 1
    labels = [c.label for r in formats.load(lived / "feedback.jsonl").records for c in r.completions]
    assert summary["feedback"] == {"desirable": labels.count(True), "undesirable": labels.count(False)}
    assert summary["seconds"] > 0


def test_measured_questions_were_never_thumbed(lived: Path) -> None:
    thumbed = {str(r.prompt[0]["content"]) for r in formats.load(lived / "feedback.jsonl").records if r.prompt}  # type: ignore[index]
    measured = {row["prompt"] for row in lines(lived / "answers.jsonl")}
    assert len(measured) == 40 and thumbed and not thumbed & measured


def test_the_run_folder_is_that_of_any_training(lived: Path) -> None:
    run = lived / "run"
    for name in ("config.json", "metrics.jsonl", "check.json", "story.json", "model/model.safetensors"):
        assert (run / name).exists(), name
    assert json.loads((run / "config.json").read_text(encoding="utf-8"))["config"]["loss"] == "kto"
    page = (lived / "report.html").read_text(encoding="utf-8")
    assert "From thumbs to a better assistant" in page and "Desirable answers" in page


def test_nothing_is_overwritten(lived: Path) -> None:
    with pytest.raises(ConfigError, match="never overwrites"):
        run_demo(lived, plan=TINY)


def test_the_assistant_is_copied_whole(tmp_path: Path) -> None:
    folder = shipped_assistant(tmp_path / "assistant")
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names


def test_users_thumb_most_answers_of_the_demo(lived: Path) -> None:
    given = len(formats.load(lived / "feedback.jsonl").records)
    assert abs(given / TINY.asked - users.THUMB_RATE) < 0.2
    assert 0 < users.NOISE < 0.1 and len(world.KINDS) == 6
