"""`prospect compare`: two models, a judge that is a file, figures with intervals, a gate, and nothing done twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prospect.cli.main import main
from prospect.errors import ConfigError
from prospect.evaluate.compare import Gate, compare, with_holm
from tests.helpers.models import tiny
from tests.helpers.tokenizers import CHATML


@pytest.fixture
def words(assistant: Path, tmp_path: Path) -> list[str]:
    """A command line whose judge likes vowels."""
    other = tiny(tmp_path / "other", CHATML, seed=1)
    judge = tmp_path / "judge.py"
    judge.write_text("def score(prompt, answer):\n    return sum(c in 'aeiou' for c in answer)\n", encoding="utf-8")
    rows = [
        {"prompt": f"question {k}?", "completion": "aeiou" if k % 3 else "xyz", "label": bool(k % 3)} for k in range(12)
    ]
    data = tmp_path / "thumbs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    flags = ["--prompts", str(data), "--judge", f"{judge}:score", "--out", str(tmp_path / "out"), "--chat", "-n", "2"]
    return ["compare", str(assistant), str(other), *flags, "--max-new-tokens", "8"]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_compare_end_to_end(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["agreement"]["value"] == 1, "the judge likes what people liked"
    greedy, drawn = result["comparisons"]
    assert (greedy["temperature"], greedy["pairs"], drawn["temperature"], drawn["pairs"]) == (0, 12, 1, 24)
    assert drawn["clusters"] == 12

    def vowels(place: int) -> dict[tuple[str, int], int]:
        answers = lines(tmp_path / "out" / f"answers-{place}-temperature-1.jsonl")
        return {(a["id"], a["sample"]): sum(c in "aeiou" for c in a["completion"]) for a in answers}

    first, other = vowels(0), vowels(1)
    wins = [(other[key] > first[key]) + 0.5 * (other[key] == first[key]) for key in first]
    assert drawn["win_rate"]["value"] == pytest.approx(np.mean(wins))
    assert drawn["score_difference"]["value"] == pytest.approx(np.mean([other[key] - first[key] for key in first]))
    judgements = (tmp_path / "out" / "judgements.jsonl").read_bytes()
    assert main(words) == 0
    assert (tmp_path / "out" / "judgements.jsonl").read_bytes() == judgements, "nothing is judged twice"
    shown = capsys.readouterr().out
    assert "win rate, ties by half" in shown and "Holm over 2" in shown and "kappa of judge" in shown


def test_a_gate_decides_the_exit_code(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--require", "win >= 0"]) == 0
    assert main([*words, "--require", "win > 1"]) == 1
    assert "not fulfilled: win > 1" in capsys.readouterr().err
    assert main([*words, "--require", "wins > 1"]) == 2
    assert '"win >= 0.5"' in capsys.readouterr().err


def test_a_model_against_itself_ties_at_temperature_0(
    words: list[str], assistant: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words[2] = str(assistant)
    assert main([*words, "--json"]) == 0
    for one in json.loads(capsys.readouterr().out)["comparisons"]:
        assert (one["win_rate"]["value"], one["sign_p"], one["wilcoxon_p"]) == (0.5, 1, 1)
        assert one["decided_win_rate"] is None
        assert one["prompts_needed"] is None, "pairs that are all tied say nothing of how pairs vary"


def test_bad_use_is_refused(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "judge.py").write_text("def score(prompt, answer):\n    return answer\n", encoding="utf-8")
    assert main(words) == 1
    assert "expected a finite number" in capsys.readouterr().err
    assert main([*words[:2], *words[3:]]) == 2
    assert "two models or more" in capsys.readouterr().err


def test_figures_of_scores_by_hand() -> None:
    score, other = np.array([1.0, 0, 1, 1, 1]), np.array([0.0, 1, 0, 0, 1])
    length, cluster = np.array([5.0, 5, 7, 9, 4]), np.arange(5)
    one = compare("new", "start", 1.0, score, other, length, length[::-1], cluster)
    assert one.win_rate.value == pytest.approx(3.5 / 5)
    assert (one.outcomes.wins, one.outcomes.losses, one.outcomes.ties) == (3, 1, 1)
    assert one.sign_p == one.mcnemar_p == pytest.approx(10 / 16)
    assert one.score_difference.value == pytest.approx(0.4)
    assert [x.holm_p for x in with_holm([one, one])] == [1, 1]
    assert Gate.parse("win>=0.7").holds(one)
    assert not Gate.parse("win_low > 0.7").holds(one)
    graded = compare("new", "start", 1.0, score / 2, other, length, length[::-1], cluster)
    assert graded.mcnemar_p is None
    for text in ("win", "loss > 1", "win = 0.5", "win >= x"):
        with pytest.raises(ConfigError, match="expected a figure"):
            Gate.parse(text)
