"""Every prediction of the theory holds; a wrong one is reported as wrong; the page and its figures are whole."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from rich.console import Console

from prospect.losses.unpaired import kto
from research.theory import __main__ as command
from research.theory import report, tabular
from research.theory.contradiction import contradictory
from research.theory.tabular import Experiment
from research.theory.value import gradient, human_value

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def experiments() -> list[Experiment]:
    return report.run(seed=0)


def test_every_prediction_holds(experiments: list[Experiment]) -> None:
    for experiment in experiments:
        for finding in experiment.findings:
            assert finding.holds, finding
    assert len(experiments) == len(report.EXPERIMENTS)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_exact_experiments_hold_for_other_draws(seed: int) -> None:
    assert report.failed([gradient(seed), human_value(seed)]) == 0


def test_the_contradictory_loss_is_the_papers() -> None:
    """L = l_D + ((1-p) l_U - p l_D) s(u_a) + (p l_U - (1-p) l_D) s(u_b)."""
    a, b, z0, p = (torch.tensor(x, dtype=torch.float64) for x in (1.5, -2.0, 0.3, 0.6))
    got = contradictory(a, b, z0, p, beta=0.5, desirable=1.0, undesirable=2.0)
    u_a, u_b = (torch.sigmoid(0.5 * (r - z0)) for r in (a, b))
    assert got.item() == pytest.approx((1 + (0.8 - 0.6) * u_a + (1.2 - 0.4) * u_b).item(), abs=1e-12)


def test_descent_starts_at_the_reference_and_follows_the_loss() -> None:
    reference = tabular.table([[0.2, 0.8]])
    still = tabular.descend(reference, lambda r, kl: 0 * r.sum(), steps=3)
    assert still.tolist()[0] == pytest.approx([0.2, 0.8])
    up = torch.tensor([True])
    moved = tabular.descend(reference, lambda r, kl: kto(r[:, 0], up, kl.detach()).sum(), steps=3)
    assert moved[0, 0] > 0.2


def test_a_wrong_prediction_is_said_and_makes_the_command_fail(
    experiments: list[Experiment], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    wrong = dataclasses.replace(experiments[0].findings[0], holds=False)
    bad = dataclasses.replace(experiments[0], findings=(wrong, *experiments[0].findings[1:]))
    monkeypatch.setattr(report, "run", lambda seed: [bad])
    assert command.main(["--out", str(tmp_path / "page")]) == 1
    assert "FAILS" in capsys.readouterr().out
    assert "FAILS" in (tmp_path / "page" / "theory.html").read_text(encoding="utf-8")
    monkeypatch.setattr(report, "run", lambda seed: experiments[:1])
    assert command.main([]) == 0


def test_the_page_and_the_figures(experiments: list[Experiment], tmp_path: Path) -> None:
    page = report.write(experiments, tmp_path).read_text(encoding="utf-8")
    for experiment in experiments:
        tree = ElementTree.parse(tmp_path / f"{experiment.figure.slug}.svg")
        assert ":root" in (tree.getroot()[0].text or ""), "a figure carries its colours"
        assert experiment.figure.svg in page
    assert "http" not in re.sub(r'xmlns="[^"]*"', "", page), "the page needs no network"


def test_the_table_in_the_terminal_shows_formulas_as_they_are(experiments: list[Experiment]) -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    report.show(experiments[:1], console)
    assert "E[d λ" in console.export_text()


def test_the_document_shows_every_experiment(experiments: list[Experiment]) -> None:
    document = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
    for experiment in experiments:
        assert experiment.title in document
        assert f"images/{experiment.figure.slug}.svg" in document
        for finding in experiment.findings:
            assert finding.claim.replace("|", "\\|") in document
