"""The demo at a hundredth of its size: every file it promises, and questions that really are new."""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prospect.cli.main import main
from prospect.demo import show, users, world
from prospect.demo.story import Plan, run_demo, shipped_assistant
from prospect.errors import ConfigError
from prospect.feedback.load import load as load_feedback
from prospect.training.config import TrainConfig, to_dict

TINY = replace(Plan(), questions=96, test_questions=40)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a small demo with everything, and what it printed."""
    out, terminal = tmp_path_factory.mktemp("demo") / "out", io.StringIO()
    with contextlib.redirect_stdout(terminal):
        run_demo(out, seed=0, plan=TINY, baselines=True)
    return out, terminal.getvalue()


@pytest.fixture(scope="module")
def lived(told: tuple[Path, str]) -> Path:
    return told[0]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_summary_says_what_was_measured(lived: Path) -> None:
    summary = json.loads((lived / "summary.json").read_text(encoding="utf-8"))
    assert set(summary) == {"arms", "n", "seconds", "seed", "feedback"}
    assert list(summary["arms"]) == ["start", "sft", "kto", "kto_shuffled"]
    answered = lines(lived / "answers.jsonl")
    assert summary["n"] == len(answered) == 40
    for arm, temperatures in summary["arms"].items():
        assert list(temperatures) == ["0", "1"]
        for temperature, measured in temperatures.items():
            assert set(measured) == {"desirable_rate", "ci95"}
            rate, (low, high) = measured["desirable_rate"], measured["ci95"]
            assert rate == sum(row[arm][temperature]["desirable"] for row in answered) / 40
            assert 0 <= low <= rate <= high <= 1
    labels = [c.label for r in load_feedback(lived / "feedback.jsonl").records for c in r.completions]
    assert summary["feedback"] == {"desirable": labels.count(True), "undesirable": labels.count(False)}
    assert summary["seconds"] > 0 and summary["seed"] == 0


def test_the_baselines_do_the_same_work(lived: Path) -> None:
    """As many steps, the same rows; shuffling moves thumbs between answers and nothing else."""
    runs = {name: lines(lived / name / "metrics.jsonl") for name in ("run", "sft", "kto_shuffled")}
    assert len({sum(line["event"] == "step" for line in run) for run in runs.values()}) == 1
    shuffled = load_feedback(lived / "feedback-shuffled.jsonl").records
    thumbed = load_feedback(lived / "feedback.jsonl").records
    said = [[(r.prompt, r.completions[0].content) for r in rows] for rows in (shuffled, thumbed)]
    labels = [[r.completions[0].label for r in rows] for rows in (shuffled, thumbed)]
    assert said[0] == said[1]
    assert labels[0] != labels[1] and labels[0].count(True) == labels[1].count(True)


def test_the_terminal_tells_the_story_once(told: tuple[Path, str]) -> None:
    folder, terminal = told
    first, _, rest = terminal.partition("2. prospect check")
    assert first.count("up") >= 3 and first.count("down") >= 3  # four answers with their thumbs, and the totals
    warnings = re.findall(r"data: (.+)", rest)
    assert len(warnings) == len(set(warnings))
    said = [line for line in terminal.splitlines() if line.strip()]
    assert said[-2].endswith(f"prospect chat --model {folder}/run/model --compare {folder}/assistant")
    assert "prospect train --model MODEL --data thumbs.jsonl" in said[-1]


def test_the_printed_command_is_the_run(told: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, terminal = told
    typed = next(line for line in terminal.splitlines() if "prospect train --model /" in line)
    configs: list[TrainConfig] = []
    monkeypatch.setattr(sys.modules["prospect.run"], "run", lambda config, **_: configs.append(config))
    assert main(typed.partition("prospect ")[2].split()) == 0
    saved = json.loads((folder / "run" / "config.json").read_text(encoding="utf-8"))["config"]
    assert json.loads(json.dumps(to_dict(configs[0]))) == saved
    labels = [c.label for r in load_feedback(folder / "feedback.jsonl").records for c in r.completions]
    weight = saved["loss_args"]["desirable_weight"] * labels.count(True) / labels.count(False)
    assert weight == pytest.approx(3 / 2, abs=0.01)  # within the paper's range


def test_shown_questions_are_drawn_within_their_outcome() -> None:
    sides = [(k % 2 == 0, k % 3 == 0) for k in range(60)]
    rows = [
        {"prompt": str(k), "start": {"1": {"desirable": b}}, "kto": {"1": {"desirable": a}}}
        for k, (b, a) in enumerate(sides)
    ]
    draws = [show.choose(rows, random.Random(seed)) for seed in range(20)]
    for chosen in draws:
        assert [name for name, _ in chosen] == ["win", "win", "unchanged", "loss"]
        for name, row in chosen:
            before, after = sides[int(row["prompt"])]
            assert name == ("unchanged" if before == after else "win" if after else "loss")
    assert len({tuple(row["prompt"] for _, row in chosen) for chosen in draws}) > 15
    assert [name for name, _ in show.choose(rows[:2], random.Random(0))] == ["unchanged"]


def test_measured_questions_were_never_thumbed(lived: Path) -> None:
    thumbed = {str(r.prompt[0]["content"]) for r in load_feedback(lived / "feedback.jsonl").records if r.prompt}
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
    given = len(load_feedback(lived / "feedback.jsonl").records)
    assert abs(given / TINY.questions - users.THUMB_RATE) < 0.2
    assert 0 < users.NOISE < 0.1 and len(world.KINDS) == 6


REPO = Path(__file__).parents[2]
RESULTS = json.loads((REPO / "benchmarks" / "results" / "demo.json").read_text(encoding="utf-8"))["seeds"]


def shares(arm: str, temperature: str) -> list[float]:
    return [seed["arms"][arm][temperature]["desirable_rate"] for seed in RESULTS]


def test_the_readme_quotes_what_was_measured() -> None:
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    for arm, title in show.ARMS.items():
        cells = []
        for temperature in ("0", "1"):
            low, high = (round(100 * f(shares(arm, temperature))) for f in (min, max))
            cells.append(f"{low} to {high} %")
        row = next(
            line for line in readme.splitlines() if re.match(rf"\| {title}(, same steps)? \|", line.replace("*", ""))
        )
        assert [cell.strip(" *") for cell in row.split("|")[2:4]] == cells


def test_the_measured_gain_is_neither_temperature_nor_imitation_nor_disturbance() -> None:
    """On the committed figures: every seed, every temperature."""
    assert {seed["seed"] for seed in RESULTS} >= {0, 1, 2}
    for seed in RESULTS:
        arms = seed["arms"]
        assert max(arms["start"][t]["desirable_rate"] for t in "01") <= 0.4
        for t in "01":
            assert arms["kto"][t]["desirable_rate"] >= 0.8
            assert arms["kto"][t]["ci95"][0] > arms["sft"][t]["ci95"][1]
            assert arms["kto_shuffled"][t]["ci95"][0] < arms["start"][t]["ci95"][1]
            assert arms["kto_shuffled"][t]["desirable_rate"] < arms["start"][t]["desirable_rate"] + 0.02
