"""Every rule: it speaks where its figures call for it, and keeps silent where they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prospect.report.advice import RULES, advise
from prospect.report.folder import RunFolder
from prospect.report.verdict import verdict


def run_of(**parts: Any) -> RunFolder:
    """A run whose figures call for nothing, changed as asked; `steps` are figures that every step has."""
    steps = parts.pop("steps", {})
    good = {
        "reward_desirable": 0.4,
        "reward_undesirable": -0.9,
        "saturated": 0.1,
        "accuracy": 0.8,
        "z0": 0.5,
        "grad_norm": 1.0,
        "lr": 1e-5,
    }
    figures = good | steps
    lines = [{k: v(i) if callable(v) else v for k, v in figures.items()} | {"step": i} for i in range(1, 41)]
    for i, line in enumerate(lines):
        line.setdefault("loss", 0.5 - 0.005 * i)
    values: dict[str, Any] = {
        "path": Path("run"),
        "config": {"config": {"clip": 10.0}, "loss": {"arguments": {"beta": 0.1}}},
        "steps": tuple(lines),
        "evaluations": (),
        "warnings": (),
        "before": held(0.5, 0.5, 0.5),
        "after": held(0.8, 0.7, 0.9),
        "check": {},
        "samples": (),
        "story": {},
    }
    return RunFolder(**(values | parts))


def held(value: float, low: float, high: float, **more: Any) -> dict[str, Any]:
    found = {"n": 400, "prompts": 100, "auc": {"value": value, "low": low, "high": high}, "nll": {"value": 1.4}}
    return found | {"baselines": {}, "notes": []} | more


def baseline(name: str, value: float, low: float, high: float) -> dict[str, Any]:
    return {"baselines": {name: {"value": value, "low": low, "high": high}}}


def evals(*aucs: float) -> tuple[dict[str, Any], ...]:
    return tuple({"step": 10 * k, "auc": auc} for k, auc in enumerate(aucs))


CASES: list[tuple[str, str, dict[str, Any]]] = [
    (
        "both_rewards_fall",
        "Lower the learning rate from 1.0e-05 to about 3.3e-06",
        {"steps": {"reward_desirable": -0.5}},
    ),
    ("saturated", "Stop earlier", {"steps": {"saturated": 0.7}}),
    ("under_fitted", "a beta below 0.1", {"steps": {"accuracy": 0.52, "loss": 0.5}}),
    ("over_fitted", "Stop near step 20", {"evaluations": evals(0.5, 0.7, 0.9, 0.8)}),
    ("not_shown", "Hold out more prompts", {"after": held(0.55, 0.45, 0.65)}),
    ("length_confound", "longer", {"after": held(0.8, 0.7, 0.9, **baseline("length", 0.65, 0.6, 0.7))}),
    ("length_confound", "shorter", {"after": held(0.8, 0.7, 0.9, **baseline("length", 0.2, 0.1, 0.3))}),
    ("reference_knew", "already ranked", {"after": held(0.7, 0.6, 0.8, **baseline("reference_logp", 0.75, 0.7, 0.8))}),
    ("drifted", "Hold the model closer", {"after": held(0.8, 0.7, 0.9, nll={"value": 1.9})}),
    (
        "overconfident",
        "as a probability",
        {"after": held(0.8, 0.7, 0.9, ece={"value": 0.2, "low": 0.15, "high": 0.25})},
    ),
    (
        "unbalanced",
        "thumbs up",
        {"config": {"loss": {"arguments": {"desirable_weight": 12.0, "undesirable_weight": 1.0}}}},
    ),
    ("clipped", "clip decides", {"steps": {"grad_norm": 20.0}}),
    ("z0_rests", "as it should be", {"steps": {"z0": 0.0, "z0_raw": -2.0}}),
    ("unmeasured", "--eval-fraction 0.1", {"after": {}, "before": {}}),
]


def test_every_rule_is_tested() -> None:
    assert {name for name, _, _ in CASES} == {rule.__name__ for rule in RULES}


@pytest.mark.parametrize(("name", "says", "changes"), CASES)
def test_a_rule_speaks_where_it_should(name: str, says: str, changes: dict[str, Any]) -> None:
    rule = next(r for r in RULES if r.__name__ == name)
    found = rule(run_of(**changes))
    assert found is not None
    assert says in found.title
    assert len(found.reason) > 60
    assert "nan" not in found.title + found.reason


def test_a_good_run_needs_no_advice() -> None:
    assert advise(run_of()) == []


def test_a_run_that_blew_up_is_not_told_to_train_longer() -> None:
    found = advise(run_of(steps={"accuracy": 0.52, "loss": 0.5, "saturated": 0.9}))
    assert [a.title for a in found] == ["Stop earlier, or lower the learning rate"]


def test_a_baseline_that_does_as_well_is_named() -> None:
    found = verdict(run_of(after=held(0.7, 0.6, 0.8, **baseline("length", 0.2, 0.1, 0.3))))
    assert found is not None
    assert found.word == "No better than length alone"
    assert "0.800" in found.text


def test_advice_from_nothing_but_steps_without_figures() -> None:
    assert [
        a.title for a in advise(run_of(steps=dict.fromkeys(("lr", "accuracy", "saturated", "grad_norm")), after={}))
    ] == ["Hold out some feedback: --eval-fraction 0.1"]


def test_what_calls_for_action_comes_first() -> None:
    found = advise(run_of(steps={"z0": 0.0, "z0_raw": -2.0, "grad_norm": 20.0, "reward_desirable": -0.5}))
    assert [a.level for a in found] == ["try", "watch", "expected"]


def test_an_occasional_positive_z0_is_still_at_rest() -> None:
    assert advise(run_of(steps={"z0": lambda i: float(i % 4 == 0), "z0_raw": -1.0}))
    for z0 in (1.5, -1.5):  # above 0, or unclamped
        assert not advise(run_of(steps={"z0": z0, "z0_raw": z0}))


def test_keep_best_needs_no_advice_to_stop_earlier() -> None:
    config = {"config": {"keep_best": True, "clip": 10.0}}
    assert advise(run_of(evaluations=evals(0.5, 0.9, 0.7), config=config)) == []


@pytest.mark.parametrize(
    ("before", "after", "tone"),
    [
        (held(0.5, 0.5, 0.5), held(0.8, 0.7, 0.9), "good"),
        ({}, held(0.8, 0.7, 0.9), "good"),
        (held(0.7, 0.6, 0.8), held(0.75, 0.7, 0.79), "open"),
        (held(0.5, 0.5, 0.5), held(0.55, 0.45, 0.65), "open"),
        (held(0.5, 0.5, 0.5), held(0.3, 0.2, 0.4), "bad"),
        (held(0.5, 0.5, 0.5), held(0.8, 0.7, 0.9, **baseline("length", 0.19, 0.1, 0.3)), "open"),
        (held(0.5, 0.5, 0.5), held(0.8, 0.7, 0.9, **baseline("length", 0.7, 0.6, 0.8)), "good"),
        (held(0.5, 0.5, 0.5), held(0.8, 0.7, 0.9, nll={"value": 1.7}), "open"),
        ({"nll": {"value": 1.4}}, {"n": 4, "prompts": 2, "auc": None, "nll": {"value": 1.2}, "notes": []}, "open"),
        ({}, {"n": 4, "prompts": 2, "auc": None, "notes": []}, "open"),
        ({}, {}, "open"),
    ],
)
def test_the_verdict_claims_no_more_than_the_interval(before: dict[str, Any], after: dict[str, Any], tone: str) -> None:
    found = verdict(run_of(before=before, after=after))
    assert found is not None
    assert found.tone == tone
    assert "nan" not in found.text


def test_no_run_no_verdict() -> None:
    assert verdict(run_of(steps={}, after={}, before={})) is not None
    assert verdict(RunFolder(Path("x"), {}, (), (), (), {}, {}, {}, (), {})) is None
