"""Raters and models in `check`: agreement against values by hand, and who stands out beyond chance."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, logit

from prospect.doctor.check import check
from prospect.doctor.findings import Finding, diagnose
from prospect.doctor.measurements import Thumb
from prospect.doctor.origins import alpha, likelihoods, models, raters
from prospect.doctor.recommend.facts import measure
from prospect.doctor.recommend.rules import recommend
from prospect.feedback.load import load
from prospect.feedback.records import Completion, Record

Votes = list[tuple[str, str, bool]]
"""(rater, answer, thumb up)."""


def judged(votes: Votes, **rest: Any) -> tuple[Record, ...]:
    """Every answer is to a question of its own."""
    rows = [
        {"prompt": f"What about {answer}?", "completion": f"{answer} it is.", "label": up, "by": rater, **rest}
        for rater, answer, up in votes
    ]
    return load(rows).records


def finding(votes: Votes, key: str, **rest: Any) -> Finding | None:
    return next((f for f in check(judged(votes, **rest)).findings if f.key == key), None)


def crowd(raters: int, answers: int, seed: int = 0, noise: float = 0.1) -> Votes:
    """Raters who judge the same answers by what they are worth, with a slip now and then."""
    rng = random.Random(seed)
    worth = [rng.random() < 0.6 for _ in range(answers)]
    return [(f"r{r}", f"answer{a}", up is (rng.random() >= noise)) for r in range(raters) for a, up in enumerate(worth)]


def test_alpha_by_hand() -> None:
    """Two raters, ten answers, 0/1 as in Krippendorff's first example (alpha = 0.095)."""
    meg = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    owen = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    units = [{"meg": bool(a), "owen": bool(b)} for a, b in zip(meg, owen, strict=True)]
    assert alpha(units) == pytest.approx(0.095, abs=5e-4)
    assert alpha([{"a": True, "b": True}]) is None
    assert alpha([{"a": True, "b": True}, {"a": False, "b": False}]) == 1


def test_raters_and_their_agreement() -> None:
    votes = [("ann", "x", True), ("ben", "x", True), ("ann", "y", False), ("ben", "y", True), ("ann", "z", False)]
    result = finding(votes, "raters")
    assert result is not None
    assert result.data == {"raters": 2, "thumbs": 5, "answers": 2, "agreement": 0.5, "alpha": pytest.approx(0.0)}
    assert "2 raters gave 5 of 5 (100 %) thumbs. Several of them judged 2 of the answers" in result.message
    alone = finding([("ann", "x", True), ("ben", "y", False)], "raters")
    assert alone is not None and "nobody can say whether they agree" in alone.message
    alike = finding([("ann", "x", True), ("ben", "x", True), ("ben", "y", False)], "raters")
    assert alike is not None and alike.message.endswith("judged 1 of the answers, all alike")
    assert finding([("", "x", True), ("", "y", False)], "raters") is None


def test_a_rater_who_thumbs_everything_down() -> None:
    votes = crowd(5, 30)
    assert finding(votes, "one_sided_raters") is None
    result = finding([*votes, *(("troll", f"other{i}", False) for i in range(12))], "one_sided_raters")
    assert result is not None and result.level == "warning"
    assert [e.split(":")[0] for e in result.examples] == ['"troll"']
    few = finding([*votes, *(("new", f"other{i}", False) for i in range(6))], "one_sided_raters")
    assert few is None  # six thumbs down say nothing yet


def test_a_rater_who_contradicts_the_others() -> None:
    honest = crowd(4, 40)
    turned = [("contrary", answer, not up) for rater, answer, up in honest if rater == "r0"]
    assert finding(honest, "contrary_raters") is None
    result = finding([*honest, *turned], "contrary_raters")
    assert result is not None
    assert [e.split(":")[0] for e in result.examples] == ['"contrary"']


@pytest.mark.parametrize("seed", range(5))
def test_honest_raters_are_left_in_peace(seed: int) -> None:
    votes = crowd(20, 30, seed, noise=0.2)
    assert finding(votes, "one_sided_raters") is finding(votes, "contrary_raters") is None


def test_a_rater_with_much_of_the_weight() -> None:
    votes = [(f"r{i}", f"a{i}", i % 2 == 0) for i in range(14)]
    assert finding(votes * 2, "heavy_rater") is None
    result = finding([*votes, *(("big", f"b{i}", i % 2 == 0) for i in range(7))], "heavy_rater")
    assert result is not None and result.data == {"share": pytest.approx(1 / 3)}
    assert '"big", has 33 % of the weight' in result.message


@pytest.mark.parametrize(
    ("trained", "level"),
    [("meta-llama/Llama-3.1-8B", "info"), ("/models/qwen3-0.6b", "warning"), ("", "info")],
)
def test_models_that_wrote_the_answers(trained: str, level: str) -> None:
    records = judged([("a", "x", True), ("a", "y", False), ("a", "z", True)], model="llama3.1:8b")
    (one,) = models(records, trained)
    assert one.data == {"models": {"llama3.1:8b": 3}, "own": 3 * (level == "info" and bool(trained)), "written": 3}
    (result,) = diagnose([one])
    assert result.level == level
    assert '"llama3.1:8b" 3 of 3 (100 %)' in result.message


def scored(rng: random.Random, model: str, count: int, cost: float) -> list[tuple[Completion, int, float, int]]:
    """Answers of ten tokens that cost about so many nats each, every one to a prompt of its own."""
    start = rng.randrange(10**6)
    return [
        (Completion(f"{model}{i}", "x", model=model), start + i, -10 * (cost + rng.gauss(0, 0.3)), 10)
        for i in range(count)
    ]


def test_answers_that_the_model_would_hardly_give() -> None:
    rng = random.Random(0)
    near, far = scored(rng, "my-model", 40, 1.0), scored(rng, "gpt-x", 60, 2.0)
    (one,) = likelihoods([*near, *far], "/models/my-model")
    assert one.data["own"] == pytest.approx(-sum(nats for *_, nats, _ in near) / 400)
    assert one.data["foreign"] == pytest.approx(-sum(nats for *_, nats, _ in far) / 600)
    assert one.data["difference"] == pytest.approx(one.data["foreign"] - one.data["own"])
    assert 0.75 < one.data["low"] < 1 < one.data["high"] < 1.25  # two standard errors are 0.12
    (result,) = diagnose([one])
    assert result.level == "warning" and "in 60 of 100 (60 %) answers" in result.message
    unknown, alike = scored(rng, "", 40, 2.0), scored(rng, "other", 40, 2.0)
    (result,) = diagnose(likelihoods([*unknown, *alike], "my-model"))
    assert result.level == "info" and "those of unknown authors" in result.message
    assert not list(likelihoods([*far, *near[:9]], "my-model"))  # nine answers say nothing
    assert not list(likelihoods(far, "my-model"))


def healthy(rng: np.random.Generator, raters: int, base: float, common: int) -> list[Thumb]:
    """Thumbs of honest people who differ: leniency has a standard deviation of 1 in log-odds. They judge answers of
    their own, or some of so many common ones."""
    leniency, worth = rng.normal(0, 1, raters), rng.normal(0, 2, common)
    thumbs: list[Thumb] = []
    for r in range(raters):
        size = int(rng.integers(10, 60))
        answers = rng.permutation(common)[:size] if common else range(size)
        for a in answers:
            up = bool(rng.random() < expit(logit(base) + leniency[r] + (worth[a] if common else 0.0)))
            prompt = int(a) if common else len(thumbs)
            thumbs.append(Thumb(Completion(str(len(thumbs)), "x", label=up, by=f"r{r}"), prompt, up, 1.0, 1, True))
    return thumbs


def test_of_healthy_files_at_most_one_in_twenty_names_somebody() -> None:
    rng, files, named = np.random.default_rng(0), 0, 0
    for people, base, common in itertools.product((4, 8, 30), (0.6, 0.9), (0, 60)):
        for _ in range(10):
            keys = {one.key for one in raters(healthy(rng, people, base, common))}
            files += 1
            named += bool(keys & {"one_sided_raters", "contrary_raters"})
    assert named <= 0.05 * files, (named, files)


@pytest.mark.parametrize("people", [8, 30])
def test_a_troll_among_people_who_differ_is_named(people: int) -> None:
    """Sixty thumbs, all down."""
    rng, named = np.random.default_rng(1), 0
    for _ in range(10):
        thumbs = healthy(rng, people, 0.7, 0)
        thumbs += [Thumb(Completion(f"t{i}", "x", by="troll"), 10**6 + i, False, 1.0, 1, True) for i in range(60)]
        findings = {one.key: one for one in raters(thumbs)}
        named += any(e.startswith('"troll"') for one in findings.values() for e in one.examples)
    assert named >= 8


def test_recommend_caps_a_heavy_rater() -> None:
    votes = [(f"r{i}", f"a{i}", i % 2 == 0) for i in range(14)]
    rows = [
        {"prompt": f"What about {answer}?", "completion": f"{answer} it is.", "label": up, "by": rater}
        for rater, answer, up in [*votes, *(("big", f"b{i}", i % 2 == 0) for i in range(7))]
    ]
    proposal = recommend(measure(load(rows)))
    assert "--max-weight-per-rater 0.25" in proposal.commands[-1]
    assert any('"big", has 33 % of the weight' in note for note in proposal.notes)
    assert "--max-weight" not in recommend(measure(load(rows[:14]))).commands[-1]
