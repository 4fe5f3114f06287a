"""Verdicts claim no more than their figures carry, every rule of advice speaks where it should, and the two never
contradict each other, whatever a run's figures are."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from prospect.report.evidence import Evidence, RunFolder
from prospect.report.next_steps import RULES, advise
from prospect.report.verdict import Verdict, result_line, verdict
from prospect.training.config import usual_rate

Data = dict[str, Any]


def run_of(**parts: Any) -> RunFolder:
    """A run that went well and whose figures call for nothing, changed as asked; `steps` are figures that every step
    has."""
    steps = parts.pop("steps", {})
    good = {
        "reward_desirable": 0.4,
        "reward_undesirable": -0.9,
        "margin": lambda i: 0.03 * i + 0.01 * (i % 2),
        "saturated": 0.1,
        "accuracy": 0.8,
        "z0": 0.5,
        "grad_norm": 1.0,
        "lr": 5e-6,
    }
    figures = good | steps
    lines = [{k: v(i) if callable(v) else v for k, v in figures.items()} | {"step": i} for i in range(1, 41)]
    for i, line in enumerate(lines):
        line.setdefault("loss", 0.5 - 0.005 * i)
    values: Data = {
        "path": Path("run"),
        "config": {"config": {"clip": 10.0, "loss": "kto"}, "loss": {"arguments": {"beta": 0.1}}},
        "steps": tuple(lines),
        "evaluations": (),
        "warnings": (),
        "before": held(0.5, 0.0, margin=spread(0.0, 0.001), change=spread(0.001, 0.0)),
        "after": held(),
        "check": {},
        "samples": samples(3, 3),
        "story": {},
    }
    return RunFolder(**(values | parts))


def spread(value: float, half: float) -> Data:
    return {"value": value, "low": value - half, "high": value + half}


def held(auc: float | None = 0.8, half: float = 0.05, *, lead: float = 0.2, baseline: float = 0.5, **more: Any) -> Data:
    """A measurement; the AUC leads that of length by `lead`, whatever that of length itself is said to be."""
    found: Data = {"n": 400, "prompts": 100, "groups": 100, "margin": spread(1.0, 0.3)}
    found["auc"] = None if auc is None else spread(auc, half)
    found |= {"nll": spread(1.4, 0.1), "nll_change": spread(0.0, 0.05), "change": spread(3.0, 0.5), "notes": []}
    found |= {"calibration_slope": spread(1.0, 0.2), "calibration_gap": spread(0.0, 0.05)}
    found["baselines"] = {"length": spread(baseline, 0.05), "reference_logp": spread(0.5, 0.05)}
    found["auc_difference"] = {"length": spread(lead, 0.05), "reference_logp": spread(0.3, 0.05)}
    return found | more


def samples(changed: int, sampled: int) -> tuple[Data, ...]:
    return tuple(
        {"step": step, "prompt": f"q{k}", "completion": "other" if step and k < changed else "same"}
        for k in range(sampled)
        for step in (0, 40)
    )


def evals(*aucs: float) -> tuple[Data, ...]:
    return tuple({"step": 10 * k, "auc": auc} for k, auc in enumerate(aucs))


def names_of(run: RunFolder) -> list[str]:
    return [advice.name for _, advice in advise(run)]


def of(run: RunFolder) -> Verdict:
    found = verdict(run)
    assert found is not None
    return found


FALLING = {"reward_desirable": -0.5}
STUCK = {"accuracy": 0.52, "loss": 0.5}
UNCHANGED = held(0.5, 0.0, lead=-0.2, change=spread(0.01, 0.001))
LESS_LIKED = held(nll_change=spread(0.5, 0.1))
LARGE_MODEL = {"config": {"config": {"loss": "kto"}, "loss": {"arguments": {"beta": 0.1}}}}

CASES: list[tuple[str, str, Data]] = [
    ("lower_rate_for_liked", "from 5.0e-06 to about 1.0e-06", {"after": LESS_LIKED}),
    ("hold_closer_for_liked", "larger beta", {"after": LESS_LIKED, "steps": {"lr": 1e-6}}),
    ("lower_rate", "from 2.0e-05 to about 5.0e-06", {"after": {}, "steps": FALLING | {"lr": 2e-5}}),
    ("hold_closer", "larger beta", {"after": {}, "steps": FALLING | {"lr": 1e-6}}),
    ("raise_rate", "from 1.0e-09 to about 5.0e-06", {"after": UNCHANGED, "steps": {"lr": 1e-9}}),
    ("raise_rate", "from 5.0e-06 to about 2.0e-05", {"after": {}, "steps": STUCK}),
    ("train_longer", "more epochs", {"after": {}, "steps": STUCK | {"lr": 2e-5}}),
    ("saturated", "Train for fewer steps", {"after": {}, "steps": {"saturated": 0.7}}),
    ("saturated_and_learnt", "Fewer steps may do", {"steps": {"saturated": 0.7}}),
    ("over_fitted", "Stop near step 20", {"evaluations": evals(0.5, 0.7, 0.9, 0.8)}),
    ("check_labels", "which thumb", {"after": held(0.3, 0.1)}),
    ("hold_out_more", "Hold out more prompts", {"after": held(0.55, 0.1)}),
    ("hold_out_more", "Hold out more prompts", {"after": held(groups=12)}),
    ("hold_out_more_for_lead", "Hold out more prompts", {"after": held(lead=0.02)}),
    ("only_length", "length of answers", {"after": held(lead=0.02, baseline=0.25)}),
    ("length_too", "goes with the length", {"after": held(baseline=0.65)}),
    ("chosen_by_the_same", "other feedback", {"evaluations": evals(0.5, 0.9, 0.7), **LARGE_MODEL}),
    (
        "start_model_knew",
        "already ranked",
        {
            "after": held(
                baselines={"reference_logp": spread(0.8, 0.05)}, auc_difference={"reference_logp": spread(-0.1, 0.05)}
            )
        },
    ),
    ("both_fall_on_pairs", "became less likely", {"steps": FALLING | {"z0": None}}),
    ("both_fall_and_learnt", "became less likely", {"steps": FALLING}),
    ("no_probability", "as a probability", {"after": held(calibration_slope=spread(0.3, 0.1))}),
    ("no_probability", "as a probability", {"after": held(calibration_gap=spread(-0.3, 0.1))}),
    ("unbalanced", "rarer", {"config": {"loss": {"arguments": {"desirable_weight": 12.0, "undesirable_weight": 1.0}}}}),
    ("unbalanced", "rarer", {"config": {"loss": {"arguments": {"desirable_weight": 1.0, "undesirable_weight": 12.0}}}}),
    ("clipped", "clip decides", {"steps": {"grad_norm": 20.0}}),
    ("z0_rests", "as it should be", {"steps": {"z0": 0.0, "z0_raw": -2.0}}),
    ("unmeasured", "--eval-fraction 0.1", {"after": {}, "before": {}}),
]


def keep_best(config: Data) -> Data:
    return config | {"config": config.get("config", {}) | {"keep_best": True}}


def test_every_rule_is_tested() -> None:
    rules = [rule.name for level in RULES.values() for rule in level]
    assert {name for name, _, _ in CASES} == set(rules)
    assert len(set(rules)) == len(rules)


@pytest.mark.parametrize(("name", "says", "changes"), CASES)
def test_a_rule_speaks_where_it_should(name: str, says: str, changes: Data) -> None:
    if name == "chosen_by_the_same":
        changes = changes | {"config": keep_best(changes["config"])}
    run = run_of(**changes)
    assert name in names_of(run)
    [advice] = [advice for _, advice in advise(run) if says in advice.value]
    assert len(advice.reason) > 60
    assert advice.source
    assert "nan" not in advice.value + advice.reason


def test_a_good_run_needs_no_advice() -> None:
    assert advise(run_of()) == []


def test_a_run_that_blew_up_is_not_told_to_train_longer() -> None:
    assert names_of(run_of(after={}, steps=STUCK | {"saturated": 0.9})) == ["saturated", "unmeasured"]


def test_advice_from_nothing_but_steps_without_figures() -> None:
    gone = dict.fromkeys(("lr", "accuracy", "saturated", "grad_norm"))
    assert [advice.value for _, advice in advise(run_of(steps=gone, after={}))] == [
        "Hold out some feedback: --eval-fraction 0.1"
    ]


def test_what_calls_for_action_comes_first() -> None:
    found = advise(run_of(after={}, steps={"z0": 0.0, "z0_raw": -2.0, "grad_norm": 20.0}))
    assert [level for level, _ in found] == ["try", "watch", "expected"]


def test_an_occasional_positive_z0_is_still_at_rest() -> None:
    assert advise(run_of(steps={"z0": lambda i: float(i % 4 == 0), "z0_raw": -1.0}))
    for z0 in (1.5, -1.5):  # above 0, or unclamped
        assert not advise(run_of(steps={"z0": z0, "z0_raw": z0}))


def test_keep_best_needs_no_advice_to_stop_earlier() -> None:
    config = keep_best({"config": {"clip": 10.0, "loss": "kto"}})
    assert "over_fitted" not in names_of(run_of(evaluations=evals(0.5, 0.9, 0.7), config=config))


@pytest.mark.parametrize(
    ("changes", "word", "tone"),
    [
        ({}, "It learnt what people like", "good"),
        ({"before": {}}, "It learnt what people like", "good"),
        ({"samples": ()}, "It learnt what people like", "good"),
        ({"after": held(baseline=0.7)}, "It learnt what people like", "good"),
        ({"after": held(margin=spread(0.001, 0.002))}, "Not shown to have learnt it", "open"),
        ({"samples": samples(0, 3)}, "The model has hardly changed", "open"),
        ({"after": held(change=spread(0.05, 0.01))}, "The model has hardly changed", "open"),
        ({"after": held(0.55, 0.1)}, "Not shown to have learnt it", "open"),
        ({"after": held(0.3, 0.1)}, "It prefers what people dislike", "bad"),
        ({"after": held(groups=19)}, "Too few prompts to tell", "open"),
        ({"after": held(lead=0.03)}, "Not shown to beat length (longer first)", "open"),
        ({"after": held(lead=0.03, baseline=0.3)}, "Not shown to beat length (shorter first)", "open"),
        ({"after": held(lead=-0.1)}, "Worse than length (longer first)", "open"),
        ({"after": held(auc_difference={}, baselines={})}, "Not compared with length and likelihood", "open"),
        ({"after": LESS_LIKED}, "It learnt the thumbs, and lost something else", "open"),
        ({"after": held(auc=None, nll_change=spread(-0.2, 0.1))}, "The answers to imitate became likelier", "open"),
        ({"after": held(auc=None)}, "The answers to imitate are not shown to be likelier", "open"),
        ({"after": {"n": 4, "prompts": 2, "auc": None, "notes": []}, "before": {}}, "Not measurable", "open"),
        ({"after": {}}, "Not measured", "open"),
    ],
)
def test_the_verdict_claims_no_more_than_its_figures(changes: Data, word: str, tone: str) -> None:
    found = of(run_of(**changes))
    assert (found.word, found.tone) == (word, tone)
    assert "nan" not in found.text
    assert found.word in result_line(run_of(**changes))
    assert "nan" not in result_line(run_of(**changes))


def test_the_verdict_names_its_lead_and_turns_no_baseline_in_silence() -> None:
    text = of(run_of(after=held(baseline=0.3))).text
    assert "length (shorter first) is 0.700 (0.300 the other way round)" in text
    assert "the difference is +0.200 (95 % interval +0.150 to +0.250)" in text
    assert "Before" not in text  # 0.5, by construction
    assert "+0.200 [+0.150, +0.250] over length (shorter first)" in result_line(run_of(after=held(baseline=0.3)))


def test_beside_another_reference_it_must_beat_what_was_there_before() -> None:
    config = {"config": {"loss": "kto", "reference": "other"}, "loss": {"arguments": {"beta": 0.1}}}
    found = of(run_of(config=config, before=held(0.78, 0.05)))
    assert found.word == "Not shown to have learnt it"
    assert "Before training it was 0.780." in found.text
    assert of(run_of(config=config, before=held(0.6, 0.05, margin=spread(0.2, 0.1)))).tone == "good"


def test_rounding_is_no_change() -> None:
    """In bf16, long answers move by more than HARDLY_CHANGED without any training."""
    noisy = {
        "before": held(0.5, 0.0, margin=spread(0.0, 0.0), change=spread(0.4, 0.02)),
        "after": held(change=spread(1.0, 0.1)),
    }
    assert of(run_of(**noisy)).word == "The model has hardly changed"


def test_without_held_out_data_nothing_is_said_to_be_better() -> None:
    for margin in (0.0, lambda i: 1e-3 * (i % 3)):
        text = of(run_of(after={}, before={}, steps={"margin": margin})).text
        assert "no more than its noise" in text
        assert "learnt" not in text
    text = of(run_of(after={}, before={})).text
    assert "which does not say that it got better" in text
    three = run_of(after={}, before={})
    three = RunFolder(**(vars(three) | {"steps": three.steps[:3]}))
    assert "no more than its noise" in of(three).text


def test_a_model_chosen_by_the_held_out_answers_gets_no_green_verdict() -> None:
    config = keep_best({"config": {"loss": "kto"}})
    found = of(run_of(config=config, evaluations=evals(0.5, 0.9, 0.8)))
    assert (found.word, found.tone) == ("It seems to have learnt what people like", "open")
    assert "flatter" in found.text
    assert "chosen by the same answers" in result_line(run_of(config=config, evaluations=evals(0.5, 0.9, 0.8)))
    assert of(run_of(config=config, evaluations=evals(0.5, 0.8))).tone == "good"  # nothing to choose from


def test_no_run_no_verdict() -> None:
    assert verdict(run_of(steps={}, after={}, before={})) is not None
    assert verdict(RunFolder(Path("x"), {}, (), (), (), {}, {}, {}, (), {})) is None


# ---- verdict and advice together -------------------------------------------------------------------------------------

AFTER = {
    "none": {},
    "no thumbs": {"auc": None, "margin": None, "auc_difference": {}, "baselines": {}},
    "chance": {"auc": spread(0.5, 0.05), "margin": spread(0.0, 0.2)},
    "reversed": {"auc": spread(0.3, 0.05), "margin": spread(-1.0, 0.2)},
    "wide": {"auc": spread(0.6, 0.15)},
    "good": {},
}
LEADS = {"behind": -0.1, "level": 0.02, "ahead": 0.2}
CHANGES = {"still": spread(0.01, 0.001), "moved": spread(3.0, 0.5)}
SAMPLES = {"none": (), "same": samples(0, 3), "other": samples(2, 3)}
LIKED = {"kept": spread(0.0, 0.05), "lost": spread(0.5, 0.1)}
STEPS = {
    "learning": {},
    "falling": FALLING,
    "falling pairs": FALLING | {"z0": None},
    "stuck": STUCK,
    "saturated": {"saturated": 0.9},
    "nothing": {"reward_desirable": 0.0, "reward_undesirable": 0.0, "margin": 0.0} | STUCK,
}
RATES = {"usual": 5e-6, "high": 1e-3}
LENGTHS = {"no": 0.5, "shorter": 0.2}
DOUBTS = {
    "lower_rate_for_liked", "hold_closer_for_liked", "lower_rate", "hold_closer", "raise_rate", "train_longer",
    "saturated", "check_labels", "hold_out_more", "hold_out_more_for_lead", "only_length", "unmeasured",
    "start_model_knew", "chosen_by_the_same",
}  # fmt: skip
"""Advice that says, or lets one think, that the model is not better."""


GROUPS = {"few": 12, "many": 100}
COURSES = {"no": (), "chosen": (0.5, 0.9, 0.8)}


def every_run() -> Any:
    """(names, run) of every combination of what a run can show."""
    kinds = (AFTER, LEADS, CHANGES, SAMPLES, LIKED, LENGTHS, GROUPS, COURSES)
    for (course, steps), (speed, rate) in product(STEPS.items(), RATES.items()):
        trained = run_of(steps=steps | {"lr": rate})
        for names in product(*kinds):
            values: list[Any] = [kind[name] for kind, name in zip(kinds, names, strict=True)]
            figures, lead, change, sampled, liked, length, groups, evaluated = values
            after = held(lead=lead, baseline=length, change=change, nll_change=liked, groups=groups) | figures
            options = {"loss": "kto", "keep_best": bool(evaluated)}
            config = {"config": options, "loss": {"arguments": {"beta": 0.1}}}
            after, evaluations = {} if names[0] == "none" else after, evals(*evaluated)
            yield (
                (*names, course, speed),
                replace(trained, after=after, samples=sampled, config=config, evaluations=evaluations),
            )


def test_verdict_and_advice_never_contradict_each_other() -> None:
    tones: set[tuple[str, str]] = set()
    for names, run in every_run():
        found, rules = of(run), set(names_of(run))
        e = Evidence(run)
        tones.add((found.word, found.tone))
        if found.tone == "good":
            assert not rules & DOUBTS, (names, rules & DOUBTS)
            assert e.auc.low > 0.5 and e.margin.low > 0 and e.lead.low > 0 and e.groups >= 20, names
            assert e.change.value > 0.1 and names[3] != "same" and not e.harm and not e.selection, names
        if "hardly changed" in found.word:
            assert rules & {"raise_rate", "train_longer"}, names
            assert not rules & {"only_length", "over_fitted", "saturated", "z0_rests", "start_model_knew"}, names
        up, down = rules & {"raise_rate", "train_longer"}, rules & {
            "lower_rate", "lower_rate_for_liked", "hold_closer", "hold_closer_for_liked", "saturated",
        }  # fmt: skip
        assert not (up and down), (names, up, down)
        if "lost something" in found.word:
            assert rules & {"lower_rate_for_liked", "hold_closer_for_liked"}, names
        if found.word == "Too few prompts to tell" or found.word == "Not shown to have learnt it":
            assert "hold_out_more" in rules, names
    assert len(tones) >= 11  # the combinations reach nearly every row of the table


def test_advice_leaves_no_gap_where_a_sentence_has_nothing_to_say() -> None:
    run = run_of(after={}, before={}, samples=samples(0, 3))
    assert any("before training. The model has hardly been trained" in advice.reason for _, advice in advise(run))


def test_no_words_of_any_run_hold_a_missing_number() -> None:
    for names, run in every_run():
        if names[2:5] != ("moved", "none", "kept"):  # one in twelve is enough
            continue
        words = of(run).text + result_line(run) + "".join(advice.value + advice.reason for _, advice in advise(run))
        assert "nan" not in words.replace("unanswered", ""), (names, words)


# ---- one source of learning rates ------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["kto", "dpo", "sft"])
@pytest.mark.parametrize("parameters", [2e6, 3e8, 8e9])
@pytest.mark.parametrize("adapter", [False, True])
def test_advice_moves_within_the_rates_that_are_usual(loss: str, parameters: float, adapter: bool) -> None:
    """A run at the proposed learning rate is sent to one of the rates that the proposal itself would try, never
    beyond."""
    usual = usual_rate(loss, parameters, adapter=adapter)
    assert usual is not None
    options = {"loss": loss, "lora": "r=16" if adapter else None}
    config = {"config": options, "loss": {"arguments": {"beta": 0.1}}, "model": {"parameters": parameters}}

    def moved(steps: Data, rate: float) -> float:
        return Evidence(run_of(config=config, after={}, steps=steps | {"lr": rate})).lower_rate

    assert moved(FALLING, usual.start) == pytest.approx(usual.low)
    assert moved(FALLING, 10 * usual.start) == pytest.approx(usual.start)
    assert moved(FALLING, usual.low) != moved(FALLING, usual.low)  # NaN: nothing lower is worth trying
    stuck = Evidence(run_of(config=config, after={}, steps=STUCK | {"lr": usual.start}))
    assert stuck.higher_rate == pytest.approx(usual.high)
    assert "raise_rate" in names_of(stuck.run)
