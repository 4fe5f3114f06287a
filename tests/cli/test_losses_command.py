"""`prospect losses` tells of every row, and explains each from its docstrings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prospect.cli.main import main
from prospect.losses.registry import LOSSES, MODIFIERS, REFERENCE_POINTS


def test_the_list_names_everything_in_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["losses"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    first = [line.split()[0] for line in lines if line.startswith("  ") and line[2:3].strip()]
    assert first == [*LOSSES, *MODIFIERS, *REFERENCE_POINTS], "every name whole, on a line that it begins"


@pytest.mark.parametrize("name", [*LOSSES, *MODIFIERS, *REFERENCE_POINTS])
def test_each_is_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses", name]) == 0
    said = capsys.readouterr().out
    assert "no docstring" not in said and len(said.splitlines()) > 2
    if name in LOSSES:
        assert "Gradient:" in said or name in ("sft", "csft", "rpo", "npo"), name


def test_a_loss_of_ones_own_and_a_mixture(capsys: pytest.CaptureFixture[str]) -> None:
    mine = Path(__file__).parents[2] / "examples" / "my_losses.py"
    assert main(["losses", f"{mine}:exponential"]) == 0
    assert "AdaBoost" in capsys.readouterr().out
    assert main(["losses", "dpo:0.8,sft:1"]) == 0
    assert "0.8 times" in capsys.readouterr().out


def test_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(LOSSES) and rows[0]["arguments"]["beta"] == 0.1
    assert (rows[0]["paper"], rows[0]["equation"]) == ("arXiv 2402.01306", "Eq. 8")
    assert list(rows[0]) == [
        *("name", "family", "view", "title", "paper", "equation", "halo", "reads", "reference", "reference_point"),
        *("arguments", "learning_rate"),
    ]


def test_an_unknown_one_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses", "kot"]) == 2
    assert '"kto"' in capsys.readouterr().err
