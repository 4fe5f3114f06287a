"""What whole runs end in: a verdict in one line, and none that claims an effect where there was none."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prospect.evaluate.heldout import measure
from prospect.report.evidence import RunFolder, read
from prospect.report.next_steps import advise
from prospect.report.verdict import Verdict, result_line, verdict
from prospect.run import train
from tests.helpers.training import thumbs

FAST: dict[str, Any] = {"precision": "fp32", "batch_size": 8, "sample_tokens": 8, "eval_fraction": 0.3}
Rows = list[dict[str, Any]]


def ends(model: Path, folder: Path, rows: Rows, **options: Any) -> tuple[Verdict, RunFolder]:
    run = read(train(model, rows, folder, **FAST | options).folder)
    found = verdict(run)
    assert found is not None
    return found, run


def test_a_run_that_learnt_ends_in_a_green_verdict(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, run = ends(model, tmp_path / "run", thumbs(160), epochs=4, learning_rate=3e-3)
    assert (found.word, found.tone) == ("It learnt what people like", "good")
    assert "3 of 3 sampled answers differ" in found.text
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == result_line(run)
    assert lines[-1].startswith("It learnt what people like. 48 held-out answers to 48 prompts: AUC ")
    assert "112 rows to train, 48 rows of 48 prompts held out" in "\n".join(lines)
    for title in ("evaluation", "samples", "reference", "train"):
        assert any(line.startswith(f"{title} ") for line in lines), title


def test_three_steps_of_nothing_are_no_verdict(model: Path, tmp_path: Path) -> None:
    found, run = ends(model, tmp_path / "run", thumbs(160), max_steps=3, learning_rate=1e-9)
    assert (found.word, found.tone) == ("The model has hardly changed", "open")
    assert "0 of 3 sampled answers differ" in found.text
    assert advise(run)[0][1].value.startswith("Raise the learning rate from 1.0e-09 to about 2.0e-04")


def test_without_held_out_rows_three_steps_learnt_nothing_either(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, run = ends(model, tmp_path / "run", thumbs(32), max_steps=3, learning_rate=1e-9, eval_fraction=0.0)
    assert (found.word, found.tone) == ("Not measured", "open")
    assert "learnt" not in found.text
    assert "no more than its noise" in found.text
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "Not measured: no feedback was held out. Add --eval-fraction 0.1 or --eval-data"
    assert any("32 rows to train, none held out" in line for line in lines)
    assert "hardly been trained" in "".join(advice.reason for _, advice in advise(run))


@pytest.mark.parametrize("seed", range(3))
def test_shuffled_thumbs_teach_nothing(model: Path, tmp_path: Path, seed: int) -> None:
    rows = thumbs(160, seed=seed)
    labels = [row["label"] for row in rows]
    random.Random(seed).shuffle(labels)
    rows = [{**row, "label": label} for row, label in zip(rows, labels, strict=True)]
    found, _ = ends(model, tmp_path / "run", rows, epochs=4, learning_rate=3e-3)
    assert found.tone != "good"


def test_what_keep_best_chose_is_said_to_be_chosen(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"epochs": 4, "learning_rate": 3e-3, "eval_every": 10, "keep_best": True}
    found, run = ends(model, tmp_path / "run", thumbs(160), **options)
    assert (found.word, found.tone) == ("It seems to have learnt what people like", "open")
    assert "chosen by the same answers" in capsys.readouterr().err.splitlines()[-1]
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "the figures flatter it" in page
    assert "Measure the kept model on other feedback" in page


# ---- the same on simulated rewards, often enough to count ------------------------------------------------------------


def judged(seed: int, *, reward_from_length: bool) -> Verdict:
    """The verdict on a reward that knows nothing, or nothing but the length that people like."""
    rng = np.random.default_rng(seed)
    n = 200
    label = rng.random(n) < 0.5
    length = rng.integers(5, 40, n) + (10 * label if reward_from_length else 0)
    reward = 0.05 * length if reward_from_length else rng.normal(size=n)
    reference = -1.5 * rng.normal(30, 8, n)
    after = measure(
        reward=reward, desirable=label, prompt=np.arange(n) // 2, length=length, reference_logp=reference,
        logp=reference + 10 * reward, z0=0.0, beta=0.1, seed=seed, resamples=200,
    )  # fmt: skip
    found = verdict(RunFolder(Path("run"), {}, (), (), (), {}, after.to_json(), {}, (), {}))
    assert found is not None
    return found


def test_a_reward_of_nothing_but_length_is_never_green() -> None:
    words = {judged(seed, reward_from_length=True).word for seed in range(20)}
    assert words == {"Not shown to beat length (longer first)"}


def test_a_reward_that_knows_nothing_is_green_no_oftener_than_its_intervals_allow() -> None:
    green = sum(judged(seed, reward_from_length=False).tone == "good" for seed in range(100))
    assert green <= 4
