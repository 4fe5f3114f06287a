"""`prospect recommend`: facts, each rule on made-up data, commands that parse, and the real files."""

from __future__ import annotations

import json
import random
from itertools import combinations

import pytest

from prospect.doctor.recommend.case import held_out, rows_to_tell
from prospect.doctor.recommend.facts import AfterSft, Model, noise
from prospect.doctor.recommend.show import to_json
from prospect.evaluate.statistics import wilson
from prospect.feedback import records as views
from prospect.feedback.records import (
    Completion,
    Pair,
    Record,
    pair_count,
)
from prospect.losses.registry import find
from prospect.training.config import usual_rate
from tests.helpers.recommending import (
    EIGHT,
    THIRTEEN,
    THREE,
    Rows,
    advised,
    base,
    facts,
    lines,
    named,
    pairs,
    parses,
    scores,
    thumbs,
    tuned,
)

# Facts


def test_facts_of_thumbs() -> None:
    found = facts(thumbs(30, 10, per_prompt=2))
    assert (found.kind, found.liked, found.disliked, found.prompts, found.single) == ("thumbs", 30, 10, 20, 0)
    assert found.possible_pairs == found.prompts_with_both == 10
    assert found.noise.rate is None


def test_noise_from_repeated_judgements() -> None:
    """d = 20 / 100 disagree, so e = (1 - sqrt(0.6)) / 2."""
    noise = facts(pairs(200, reversed_=20, agreed=80)).noise
    assert (noise.judged, noise.repeated, noise.contested) == (200, 100, 20)
    assert noise.rate == pytest.approx((1 - 0.6**0.5) / 2)
    assert noise.low is not None
    assert noise.high is not None
    assert noise.low < 0.1127 < noise.high


def test_noise_of_thumbs() -> None:
    rows = [{"prompt": f"q{i}", "completion": "a", "label": said} for i in range(30) for said in (True, i % 3 > 0)]
    noise = facts(rows).noise
    assert (noise.repeated, noise.contested) == (30, 10)
    assert noise.rate == pytest.approx((1 - (1 / 3) ** 0.5) / 2)


def test_contradictions_without_agreement_give_no_rate() -> None:
    """Equal rows were removed: only disagreement is left, and 50 % wrong would be nonsense."""
    noise = facts(pairs(200, reversed_=20)).noise
    assert (noise.repeated, noise.contested, noise.rate) == (20, 20, None)
    asked = {q.topic: q for q in advised(pairs(200, reversed_=20)).questions}
    assert "equal rows were removed" in asked["label noise"].why


class Watched(str):
    """An answer that counts how often it is looked up."""

    looks = 0

    def __hash__(self) -> int:
        Watched.looks += 1
        return str.__hash__(self)


def test_circles_are_counted_in_few_steps() -> None:
    """Unrelated pairs of one prompt have no triples, so twice the pairs are twice the work."""
    work = []
    for count in (50, 100):
        done = tuple(Completion(str(i), Watched(i)) for i in range(2 * count))
        record = Record("r", "why?", done, tuple(Pair(2 * i, 2 * i + 1) for i in range(count)))
        Watched.looks = 0
        assert (noise([record]).circles, noise([record]).triples) == (0, 0)
        work.append(Watched.looks)
    assert 0 < work[1] <= 2.2 * work[0]


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_circles_are_those_of_all_triples(share: float) -> None:
    draw = random.Random(0)
    wins = {(a, b) if draw.random() < 0.5 else (b, a) for a, b in combinations(range(12), 2) if draw.random() < share}
    triples = circles = 0
    for a, b, c in combinations(range(12), 3):
        edges = [((x, y) in wins) - ((y, x) in wins) for x, y in ((a, b), (b, c), (c, a))]
        triples += 0 not in edges
        circles += abs(sum(edges)) == 3
    done = tuple(Completion(str(i), f"answer {i}") for i in range(12))
    found = noise([Record("r", "why?", done, tuple(Pair(a, b) for a, b in sorted(wins)))])
    assert (found.circles, found.triples) == (circles, triples) and (share < 1 or circles > 0)


def test_possible_pairs_are_counted_without_making_them() -> None:
    draw = random.Random(0)
    for _ in range(50):
        scored = draw.random() < 0.5
        done = tuple(
            Completion(str(i), "x", label=draw.choice([True, False, None]), score=draw.randrange(4) if scored else None)
            for i in range(draw.randrange(8))
        )
        record = Record("r", "why?", done)
        assert pair_count(record) == len(views.pairs(record))
    assert pair_count(Record("r", "why?", done[:2] or (Completion("0", "x"),) * 2, (Pair(0, 1),))) == 1


def test_circles() -> None:
    def rows(third: tuple[str, str]) -> Rows:
        return [{"prompt": "q", "chosen": a, "rejected": b} for a, b in (("a", "b"), ("b", "c"), third)]

    assert (facts(rows(("c", "a"))).noise.circles, facts(rows(("c", "a"))).noise.triples) == (1, 1)
    assert (facts(rows(("a", "c"))).noise.circles, facts(rows(("a", "c"))).noise.triples) == (0, 1)


def test_middle_answers_cancel_as_thumbs() -> None:
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": "b", "rejected": "c"}]
    found = advised([*rows, *pairs(5)])
    assert found.case.facts.middle == 1
    assert any("cancel" in note for note in found.notes)


def test_wilson() -> None:
    found = wilson(20, 100)
    assert (found.low, found.high) == pytest.approx((0.1334, 0.2888), abs=1e-4)
    assert wilson(0, 10).low == 0


# The loss


@pytest.mark.parametrize(
    ("rows", "loss"),
    [
        (thumbs(60, 60), "kto"),
        (thumbs(60, 60, per_prompt=2), "kto"),
        (thumbs(9, 0), "sft"),
        (thumbs(0, 9), "npo"),
        (pairs(200), "kto"),
        (scores([i / 50 for i in range(150)]), "kto"),
        (scores([0.5] * 30), "sft"),
        ([{"prompt": f"q{i}", "completion": "a"} for i in range(9)], "sft"),
    ],
)
def test_loss_by_kind_of_feedback(rows: Rows, loss: str) -> None:
    found = advised(rows)
    assert found.case.loss == loss
    for line in lines(found):
        config = parses(line)
        assert config is not None
        assert config.loss in {"kto", "dpo", "sft", "npo"}
    assert all(p.reason and p.source for p in found.proposals)
    json.dumps(to_json(found))


def test_singles_leave_kto_alone() -> None:
    loss = named(advised(thumbs(60, 60)), "loss")
    assert (loss.confidence, "No prompt has both thumbs" in loss.reason) == ("high", True)
    paired = named(advised(thumbs(60, 60, per_prompt=2)), "loss")
    assert paired.confidence == "medium"
    assert "7 model sizes" in paired.reason


def test_clean_pairs_may_take_dpo() -> None:
    found = advised(pairs(900, agreed=300), tuned())
    assert (found.case.loss, named(found, "loss").confidence) == ("dpo", "low")
    assert named(found, "class weights").value == "none"
    assert "--loss kto" in next(q for q in found.questions if q.topic == "dpo or kto").command
    assert advised(pairs(900, agreed=300), base(), "no").case.loss == "kto"


def test_noisy_pairs_take_kto() -> None:
    loss = named(advised(pairs(400, reversed_=60, agreed=140), tuned()), "loss")
    assert (loss.value, loss.confidence) == ("kto", "medium")
    assert "Theorem 4.3" in loss.source
    assert any("robust with --loss.epsilon 0.18" in other for other in loss.instead)


def test_pairs_of_unknown_noise_are_undecided() -> None:
    found = advised(pairs(400), tuned())
    assert named(found, "loss").reason.startswith("Undecided")
    twin = parses(next(q.command for q in found.questions if q.topic == "kto or dpo"))
    assert twin is not None
    assert (twin.loss, twin.learning_rate) == ("dpo", 5e-6)  # LoRA: ten times DPO's 5e-7


def test_scores_are_cut_where_both_thumbs_remain() -> None:
    assert facts(scores([i / 50 for i in range(150)])).threshold == "median"
    assert facts(scores([0.0] * 20 + [1.0] * 10)).threshold == "mean"
    assert facts(scores([0.5] * 30)).threshold is None
    found = advised(scores([0.0] * 200 + [1.0] * 100))
    assert "--threshold mean" in found.commands[0]
    assert any("tgo" in other for other in named(found, "loss").instead)


# SFT first, beta, learning rate


@pytest.mark.parametrize(
    ("model", "after_sft", "value", "confidence"),
    [
        (None, "unknown", "not known", "low"),
        (None, "yes", "done", "high"),
        (tuned(), "unknown", "no", "low"),
        (base(), "unknown", "not known", "low"),
        (base(THREE), "no", "yes", "high"),
        (base(300_000_000), "no", "yes", "medium"),
        (base(EIGHT), "no", "yes", "medium"),
        (base(THIRTEEN), "no", "no", "low"),
        (base(3 * THIRTEEN), "no", "no", "medium"),
    ],
)
def test_sft_first(model: Model | None, after_sft: AfterSft, value: str, confidence: str) -> None:
    proposal = named(advised(thumbs(300, 300), model, after_sft), "SFT first")
    assert (proposal.value, proposal.confidence) == (value, confidence)


def test_sft_comes_first_in_the_commands_too() -> None:
    found = advised(thumbs(300, 300), base(THREE), "no")
    sft, kto = (parses(line) for line in found.commands)
    assert sft is not None
    assert kto is not None
    assert (sft.loss, sft.model, sft.lora) == ("sft", "base", "r=16")
    assert (kto.loss, kto.model, kto.lora) == ("kto", "runs/sft/model", None)
    assert sft.eval_fraction == kto.eval_fraction  # the same prompts are held out


@pytest.mark.parametrize(
    ("model", "after_sft", "beta", "confidence"),
    [
        (base(EIGHT), "yes", "0.05", "medium"),
        (base(THREE), "yes", "0.1", "medium"),
        (base(5_000_000_000), "yes", "0.1", "low"),
        (base(300_000_000), "yes", "0.1", "low"),
        (None, "yes", "0.1", "low"),
        (tuned(EIGHT), "no", "0.25", "medium"),
        (tuned(THREE), "no", "0.5", "medium"),
        (tuned(None), "unknown", "0.25", "low"),
        (base(THIRTEEN), "no", "0.1", "medium"),
        (None, "no", "0.1", "low"),
    ],
)
def test_beta(model: Model | None, after_sft: AfterSft, beta: str, confidence: str) -> None:
    found = advised(thumbs(300, 300), model, after_sft)
    assert (named(found, "beta").value, named(found, "beta").confidence) == (beta, confidence)
    assert any("beta" in q.topic or "--loss.beta" in q.settle for q in found.questions) == (confidence == "low")


@pytest.mark.parametrize(
    ("model", "rate", "confidence", "trained"),
    [
        (None, "5e-6", "low", "all"),
        (tuned(EIGHT), "5e-5", "low", "LoRA, r=16"),
        (tuned(300_000_000), "5e-6", "low", "all"),
        (tuned(2_000_000), "2e-4", "low", "all"),
        (tuned(300_000_000, adapter=True), "5e-5", "low", "the adapter"),
    ],
)
def test_learning_rate(model: Model | None, rate: str, confidence: str, trained: str) -> None:
    found = advised(thumbs(300, 300), model)
    assert (named(found, "learning rate").value, named(found, "learning rate").confidence) == (rate, confidence)
    assert named(found, "weights trained").value == trained
    assert any(q.topic.startswith("learning rate") and q.command.startswith("for lr in ") for q in found.questions)


@pytest.mark.parametrize("model", [None, tuned(EIGHT), tuned(300_000_000), tuned(2_000_000), base(THREE)])
def test_the_sweep_and_the_alternatives_are_the_rates_that_the_report_advises(model: Model | None) -> None:
    """Also after an SFT run whose adapter goes on training: the base model, which is not tuned."""
    found = advised(thumbs(300, 300), model, "no" if model == base(THREE) else "unknown")
    usual = usual_rate("kto", found.case.parameters, adapter=named(found, "weights trained").value.startswith("LoRA"))
    assert usual is not None
    [question] = [q for q in found.questions if q.topic.startswith("learning rate")]
    values = question.command.removeprefix("for lr in ").split(";")[0].split()
    assert [float(value) for value in values] == pytest.approx([usual.low, usual.start, usual.high])
    rate = named(found, "learning rate")
    assert float(rate.value) == pytest.approx(usual.start)
    assert [float(text.split()[0]) for text in rate.instead] == pytest.approx([usual.low, usual.high])
    assert (usual.below(usual.start), usual.above(usual.start)) == (usual.low, usual.high)


def test_every_loss_named_is_in_the_table() -> None:
    named_losses = ["kto", "dpo", "sft", "npo", "bco", "tgo", "odpo", "ddo_rm", "robust", "rdpo", "simpo"]
    assert [find(name).name for name in named_losses] == named_losses


def test_learning_rates_are_those_of_the_table() -> None:
    assert float(named(advised(thumbs(300, 300)), "learning rate").value) == find("kto").learning_rate
    assert float(named(advised(thumbs(9, 0)), "learning rate").value) == find("sft").learning_rate


# Weights, reference point, steps, what is held out


@pytest.mark.parametrize(
    ("up", "down", "value", "words", "confidence"),
    [
        (300, 300, "auto: desirable 1, undesirable 1", "within", "medium"),
        (390, 300, "auto: desirable 1, undesirable 1.3", "within", "medium"),
        (100, 300, "auto: desirable 3, undesirable 1", "3 to 4.5", "medium"),
        (30, 300, "auto: desirable 10, undesirable 1", "10 to 15", "low"),  # the paper's own example: [10, 15]
        (450, 300, "auto: desirable 1, undesirable 1.5", "within", "medium"),
        (500, 300, "auto: desirable 1, undesirable 1.67", "1.11 to 1.67", "medium"),
        (900, 300, "auto: desirable 1, undesirable 3", "2 to 3", "low"),
    ],
)
def test_class_weights_by_eq_9(up: int, down: int, value: str, words: str, confidence: str) -> None:
    weights = named(advised(thumbs(up, down)), "class weights")
    assert (weights.value, weights.confidence) == (value, confidence)
    assert words in weights.reason


def test_contested_answers_and_unequal_weights() -> None:
    torn = [{"prompt": "torn", "completion": "a", "label": label} for label in (True, False)]
    weights = named(advised([*thumbs(899, 299), *torn]), "class weights")
    assert "counts as disliked unless more than 75 % of its thumbs say liked" in weights.reason
    assert "judged both ways" not in named(advised([*thumbs(299, 299), *torn]), "class weights").reason


def test_one_prompt_has_no_partners() -> None:
    rows = [{"prompt": "q", "completion": f"a{i}", "label": i % 2 == 0} for i in range(40)]
    found = advised(rows)
    assert named(found, "reference point").value == "zero"
    assert "--reference-point zero" in found.commands[0]
    assert "--eval-fraction" not in found.commands[0]


def test_reference_point_says_what_the_ablation_shows() -> None:
    answers: tuple[AfterSft, ...] = ("yes", "no")
    for after_sft in answers:
        point = named(advised(thumbs(300, 300), tuned(), after_sft), "reference point")
        assert point.value == "mismatched"
        assert "p = .42" in point.reason
        assert "not significant" in point.reason


def test_batch_and_epochs() -> None:
    small, middle, large = (advised(thumbs(n, n)) for n in (100, 800, 2200))
    assert [named(f, "batch size").value for f in (small, middle, large)] == ["8", "8", "32"]
    assert [named(f, "epochs").value for f in (small, middle, large)] == ["3", "1", "1"]
    assert "may still be too few" in named(small, "epochs").reason
    assert "--batch-size" not in large.commands[0]


def test_held_out_tells_six_from_chance() -> None:
    assert held_out(1000, 1000, 500)[0] == 0.1
    assert held_out(400, 400, 500)[0] == 0.2
    fraction, wide = held_out(40, 40, 80)
    assert (fraction, wide > 0.1) == (0.3, True)
    assert held_out(40, 0, 80)[0] == held_out(40, 40, 1)[0] == 0
    n = rows_to_tell(40, 40)
    assert held_out(n / 2, n / 2, 80)[1] <= 0.1


def test_too_few_rows_are_said_first() -> None:
    first = advised(thumbs(40, 40)).questions[0]
    assert "0.6 cannot be told from chance" in first.why
    assert "about 450 rows" in first.settle
    assert "13,000 pairs" in advised(thumbs(400, 400)).questions[0].why
    assert all("rows" not in q.why for q in advised(thumbs(2000, 2000)).questions)


def test_length_confound_is_minded() -> None:
    rows = [
        {"prompt": f"q{i}", "completion": "word " * (9 if i % 2 else 1) + str(i), "label": i % 2 == 1}
        for i in range(200)
    ]
    assert any("Liked answers are longer" in note for note in advised(rows).notes)
    longer = [{**row, "chosen": row["chosen"] + " and much more"} for row in pairs(200)]
    assert any("rdpo" in other for other in named(advised(longer), "loss").instead)
