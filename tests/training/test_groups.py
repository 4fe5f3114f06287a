"""Losses on groups: groups stay whole in a step, and however a step is cut, ordered or resumed, nothing changes."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prospect.errors import ConfigError, DataError, Interrupted
from prospect.feedback import records
from prospect.feedback.load import load
from prospect.losses.registry import LOSSES
from prospect.run import train
from prospect.training import loop
from prospect.training import step as step_module
from prospect.training.batch import Batch, Completions, cut_step
from prospect.training.objective import Objective, step_metrics
from prospect.training.setup import group_counts
from prospect.training.step import Job
from tests.helpers.runs import FAST, same_bits, steps, stop_at
from tests.helpers.training import GROUP_SIZES, MakeJob, close, gradients, groups, logp, move

ON_GROUPS = [name for name, row in LOSSES.items() if row.view == "groups"]
MANY = (3, 2, 9, 4, 2, 5, 2, 3)


def long_unless_first(row: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    first = next(one for one in rows if one["prompt"] == row["prompt"])
    return row if row is first else row | {"completion": "w7 " * 80}


def cut_groups(job: Job) -> int:
    """How many groups of the first step lie in several micro-batches."""
    (micro_batches,) = cut_step(job.dataset, job.schedule.steps[0].rows, 1, job.token_budget)
    parts = [{job.dataset.examples[i].tree for i in micro_batch.rows} for micro_batch in micro_batches]
    return sum(size > 1 for size in Counter(tree for part in parts for tree in part).values())


def test_groups_stay_whole_in_a_step(make_job: MakeJob) -> None:
    """Of whatever size, however the file scatters them; and they stand together within it."""
    rows = groups(MANY)
    random.Random(1).shuffle(rows)
    job = make_job(rows, loss="tpo", batch_size=4, epochs=2)
    assert sorted(Counter(example.tree for example in job.dataset.examples).values()) == sorted(MANY)
    for epoch in range(2):
        trained = [i for step in job.schedule.steps if step.epoch == epoch for i in step.rows]
        assert sorted(trained) == list(range(sum(MANY)))
    sizes = Counter(example.tree for example in job.dataset.examples)
    for step in job.schedule.steps:
        trees = [job.dataset.examples[i].tree for i in step.rows]
        assert all(trees.count(tree) == sizes[tree] for tree in trees)
        assert sum(a != b for a, b in itertools.pairwise(trees)) == len(set(trees)) - 1
    assert len({len(step.rows) for step in job.schedule.steps}) > 1


@pytest.mark.parametrize("loss", ON_GROUPS)
def test_a_step_may_be_cut_through_its_groups(make_job: MakeJob, loss: str) -> None:
    """Gradient and metrics in one micro-batch, in several that hold whole groups, and in groups cut in two: the same to
    1e-12 in float64; weights after five steps to 1e-10."""
    options = {"loss": loss, "epochs": 5, "batch_size": 14}
    whole = make_job(groups(), **options)
    several = make_job(groups(), "several", token_budget=60, **options)
    parts = make_job(groups(), "parts", token_budget=24, **options)
    assert len(cut_step(several.dataset, several.schedule.steps[0].rows, 1, 60)[0]) > 1
    assert (cut_groups(whole), cut_groups(several)) == (0, 0) and cut_groups(parts) > 1
    for job in (whole, several, parts):
        move(job)
    expected, _, sums = gradients(whole)
    for job in (several, parts):
        got, _, totals = gradients(job)
        close(got, expected, 1e-12)
        assert totals == pytest.approx(sums, rel=1e-11)
    for job in (whole, several, parts):
        job.schedule = replace(job.schedule, max_steps=5)
        loop.fit(job)
    for job in (several, parts):
        for (name, a), (_, b) in zip(whole.policy.trainable(), job.policy.trainable(), strict=True):
            assert (a - b).norm() <= 1e-10 * a.norm(), name


def test_whole_groups_need_no_second_pass(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every group lies in one micro-batch, each micro-batch runs forward once."""
    job = make_job(groups(), loss="tpo", batch_size=14, token_budget=60)
    monkeypatch.setattr(step_module, "_in_order", lambda *a: pytest.fail("the step was gathered"))
    gradients(job)
    job.token_budget = 24
    with pytest.raises(pytest.fail.Exception, match="gathered"):
        gradients(job)


@pytest.mark.parametrize("loss", ON_GROUPS)
def test_the_order_of_the_file_does_not_matter(make_job: MakeJob, loss: str) -> None:
    """All rows in one step: prompts and answers in another order, the same gradient."""
    rows = [row | {"id": f"r{k}"} for k, row in enumerate(groups(MANY))]
    first = make_job(rows, loss=loss, batch_size=64)
    second = make_job(random.Random(3).sample(rows, len(rows)), "other", loss=loss, batch_size=64)
    for job in (first, second):
        move(job)
    close(gradients(first)[0], gradients(second)[0], 1e-11)


def test_an_interrupted_run_resumes_to_the_same_bits(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, options = groups(MANY * 2), FAST | {"loss": "tpo", "epochs": 2, "token_budget": 40}
    whole = train(model, rows, tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(Interrupted):
            train(model, rows, tmp_path / "parts", **options)
    parts = train(data=rows, out=tmp_path / "parts", resume=True)
    assert steps(parts) == steps(whole)
    same_bits(tmp_path / "parts", tmp_path / "whole")


def test_what_cannot_be_compared_is_left_out_and_said(
    make_job: MakeJob, model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A lone answer, an answer without a score, one that is too long: the counts name them, other rows train alike."""
    rows = groups()
    plain = make_job(rows, loss="tpo", batch_size=14)
    lone = {"prompt": "w3 w4 ", "completion": "w5", "score": 1.0}
    unscored = {"prompt": rows[0]["prompt"], "completions": [{"content": "w9 w9"}]}
    long = rows[0] | {"completion": "w7 " * 80}
    twice = [lone | {"prompt": "w6 "}, lone | {"prompt": "w6 ", "completion": "w8 " * 80}]
    more = make_job([lone, *rows, unscored, long, *twice], "more", loss="tpo", batch_size=14)
    for job in (plain, more):
        move(job)
    close(gradients(plain)[0], gradients(more)[0], 1e-11)
    assert group_counts(more.dataset) == {
        "groups": 5, "smallest": 2, "largest": 4, "equal_scores": 1, "alone": 2, "unscored": 1
    }  # fmt: skip
    train(model, [lone, *rows, unscored], tmp_path / "trained", loss="tpo", **FAST)
    assert (
        "groups: 5 of 2 to 4 scored answers; with equal scores: 1 (kept; --equal-scores drop leaves them out); "
        "left out: 1 answers that are alone, 1 without a score"
    ) in capsys.readouterr().err
    counts = json.loads((tmp_path / "trained" / "config.json").read_text())["data"]["groups"]
    assert (counts["equal_scores"], counts["equal_scores_are"], counts["groups"]) == (1, "kept", 5)
    page = " ".join(re.sub("<[^>]*>", " ", (tmp_path / "trained" / "report.html").read_text()).split())
    assert "groups equal scores 1 " in page and "groups equal scores are kept" in page


def test_groups_with_equal_scores_can_be_dropped(make_job: MakeJob) -> None:
    """From the sum and from the count: what is left has the gradient of a file without them."""
    rows = groups()
    start = GROUP_SIZES[0]
    without = rows[:start] + rows[start + GROUP_SIZES[1] :]
    dropped = make_job(rows, loss="tpo", batch_size=14, equal_scores="drop")
    fewer = make_job(without, "fewer", loss="tpo", batch_size=14)
    kept = make_job(rows, "kept", loss="tpo", batch_size=14)
    for job in (dropped, fewer, kept):
        move(job)
    close(gradients(dropped)[0], gradients(fewer)[0], 1e-12)
    assert dropped.objective.count(dropped.dataset, dropped.schedule.steps[0].rows) == [4]
    assert kept.objective.count(kept.dataset, kept.schedule.steps[0].rows) == [5]
    counts = group_counts(dropped.dataset)
    assert (counts["groups"], counts["equal_scores"]) == (4, 1)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda rows: rows[::20], {}, r"reads several scored completions to one prompt, but the data has .*1 scored"),
        (
            lambda rows: [long_unless_first(row, rows) for row in rows],
            {},
            "no prompt has two scored answers of at most",
        ),
        (lambda rows: [row | {"completion": "w7 " * 80} for row in rows], {}, "all 14 rows are longer than 64 tokens"),
        (
            lambda rows: [row | {"score": 1.0} for row in rows],
            {"equal_scores": "drop"},
            "in all 5 groups every answer has the same score",
        ),
        (lambda rows: [row | {"score": "good"} for row in rows], {}, "score must be a number"),
        (lambda rows: rows, {"group": "row"}, "tpo compares all answers to a prompt, which --group row would part"),
        (lambda rows: rows, {"modify": ["humanline"]}, "humanline changes log-ratios, but tpo reads log-probs"),
        (lambda rows: rows, {"loss": "tgo", "equal_scores": "drop"}, "tgo compares no groups of scored answers"),
    ],
)
def test_what_does_not_fit_is_refused(make_job: MakeJob, change: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((DataError, ConfigError), match=message):
        make_job(change(groups()), **({"loss": "tpo"} | options))


def test_scores_of_single_answers_do_not_serve_groups_but_losses_that_fit_are_named(make_job: MakeJob) -> None:
    rows = [row | {"prompt": f"w{k} "} for k, row in enumerate(groups())]
    with pytest.raises(DataError, match="Losses that fit: tgo"):
        make_job(rows, loss="tpo")
    assert load(rows).records


def test_a_mixture_with_a_likelihood(make_job: MakeJob) -> None:
    """The weighted sum of both, each over its own unit; the likelihood is of the answers above the threshold."""
    jobs = {name: make_job(groups(), str(k), loss=name, batch_size=14, threshold="0.6")
            for k, name in enumerate(("tpo", "sft", "tpo:0.8,sft:0.5"))}  # fmt: skip
    for job in jobs.values():
        move(job)
    one, two, both = (gradients(job)[0] for job in jobs.values())
    close(both, {name: 0.8 * g + 0.5 * two[name] for name, g in one.items()}, 1e-11)
    jobs["tpo:0.8,sft:0.5"].token_budget = 24
    close(gradients(jobs["tpo:0.8,sft:0.5"])[0], both, 1e-11)


def test_a_groups_weight_is_the_mean_of_its_answers(make_job: MakeJob) -> None:
    rows = groups()
    light = make_job([row | {"weight": 1.0} for row in rows], loss="tpo", batch_size=14)
    heavy = make_job([row | {"weight": 3.0} for row in rows], "heavy", loss="tpo", batch_size=14)
    uneven = make_job([row | {"weight": float(k % 2) * 2} for k, row in enumerate(groups((2, 2)))], "a", loss="tpo")
    even = make_job([row | {"weight": 1.0} for row in groups((2, 2))], "b", loss="tpo")
    for job in (light, heavy, uneven, even):
        move(job)
    close(gradients(heavy)[0], {name: 3 * g for name, g in gradients(light)[0].items()}, 1e-12)
    close(gradients(uneven)[0], gradients(even)[0], 1e-12)


def test_metrics_compare_answers_within_their_group() -> None:
    """Above and below the group's mean score, rewards against the group's mean; equal scores judge nothing."""
    r = torch.tensor([2.0, 1.0, 9.0, 10.0, -3.0, 5.0]).double()
    tokens = Completions(r, torch.arange(7), torch.zeros(6).double())
    scores: Tensor = torch.tensor([0.9, 0.1, 0.2, 0.4, 0.7, 0.7]).double()
    batch = Batch((tokens,), torch.ones(6).double(), (True,) * 6, scores, trees=(0, 0, 1, 1, 2, 2))
    totals = Objective(LOSSES["tpo"], {"eta": 1.0}).sums(batch, torch.zeros(()), 1e-6).tolist()
    found = step_metrics(totals, saturates=False)
    assert found["accuracy"] == 1.0 and "saturated" not in found
    assert (found["reward_desirable"], found["reward_undesirable"]) == ((2 + 10) / 2, (1 + 9) / 2)


def test_training_approaches_the_target(make_job: MakeJob) -> None:
    """The target stands still, so that what the loss loses is divergence of the policy from it."""
    job = make_job(groups((4,) * 12, seed=2), loss="tpo", epochs=12, learning_rate=1e-3, batch_size=48)
    loop.preflight(job)
    loop.fit(job)
    lines = [m for m in job.log.metrics if m["event"] == "step"]
    assert "accuracy" not in lines[0] and lines[0]["margin"] == pytest.approx(0, abs=1e-4)
    losses = [line["loss"] for line in lines]
    assert losses[-1] < losses[4] < losses[0] and all(0 <= line["accuracy"] <= 1 for line in lines[1:])


def test_held_out_groups_are_measured_by_what_is_above_their_mean(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a threshold, scores of one prompt say which of its answers are better, and equal ones nothing."""
    run = train(model, groups((4, 3, 2) * 12), tmp_path / "run", loss="ddo_rm", eval_fraction=0.3, **FAST)
    result = run.evaluate()
    assert result is not None and result.auc is not None and result.desirable > 3 < result.undesirable
    assert "held out: answers scored above the mean of their prompt's count as liked" in capsys.readouterr().err
    again = run.evaluate([row | {"prompt": f"w1 {row['prompt']}"} for row in groups((4, 3, 2))])
    assert again is not None and (again.desirable, again.undesirable, again.n) == (3, 3, 9)


def test_lone_scores_held_out_are_imitated(model: Path, tmp_path: Path) -> None:
    run = train(model, groups(), tmp_path / "run", loss="tpo", **FAST)
    alone = run.evaluate([row | {"prompt": f"w{k} w1 "} for k, row in enumerate(groups())])
    assert alone is not None and alone.auc is None and alone.nll is not None


@pytest.mark.parametrize("loss", ["tpo", "gspo", "rloo"])
def test_the_data_may_say_how_likely_the_answers_were(make_job: MakeJob, loss: str) -> None:
    """The reference's own numbers change nothing; others are another old policy, however a step is cut."""
    rows, options = [row | {"id": f"r{k}"} for k, row in enumerate(groups())], {"loss": loss, "batch_size": 14}
    job = make_job(rows, **options)
    start = {}
    for example in job.dataset.examples:
        prompt, answer = job.dataset.trees[example.tree].prompt, job.dataset.completion(example)
        start[example.id] = float(logp(job, prompt, answer).detach().sum())
    same = make_job([row | {"old_logp": start[row["id"]]} for row in rows], "same", **options)
    other = [row | {"old_logp": start[row["id"]] * (0.9 if k % 3 else 1.1)} for k, row in enumerate(rows)]
    moved, parts = make_job(other, "moved", **options), make_job(other, "parts", token_budget=24, **options)
    for one in (job, same, moved, parts):
        move(one)
    close(gradients(same)[0], gradients(job)[0], 1e-10)
    got = gradients(moved)[0]
    assert any((got[name] - g).norm() > 1e-3 * g.norm() for name, g in gradients(job)[0].items())
    assert cut_groups(parts) > 1
    close(gradients(parts)[0], got, 1e-11)


def test_old_log_probs_are_for_all_answers_and_whole_ones(make_job: MakeJob) -> None:
    rows = [row | {"old_logp": -9.0} for row in groups()]
    with pytest.raises(DataError, match=r"\(line1\) has an old_logp, but .*\(line2\) has none"):
        make_job(
            [{k: v for k, v in row.items() if k != "old_logp" or i != 1} for i, row in enumerate(rows)], loss="tpo"
        )
    long = [*rows, rows[0] | {"completion": "w7 " * 80}]
    with pytest.raises(DataError, match="old_logp is about whole prompts and answers, but --over-long has cut some"):
        make_job(long, loss="rloo", over_long="cut_completion")
    make_job(long, loss="ddo_rm", over_long="cut_completion")


def test_judged_answers_of_a_chat_arena(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real scores: three answers to nearly every prompt, in one of thirteen prompts all alike. Those that are short."""
    path = shared / "data" / "scores_cje_arena_judge.jsonl.gz"
    rows = records.examples(load(path).records, "groups")
    assert (len({row.tree for row in rows}), len(records.without_spread(rows))) == (999, 77)
    with gzip.open(path, "rt", encoding="utf-8") as file:
        every = [json.loads(line) for line in file]
    short = [row for row in every if len(row["completion"]) + len(str(row["prompt"])) < 350]
    by_prompt: dict[str, list[float]] = {}
    for row in short:
        by_prompt.setdefault(str(row["prompt"]), []).append(row["score"])
    together = [scores for scores in by_prompt.values() if len(scores) > 1]
    equal, alone = sum(len(set(scores)) == 1 for scores in together), len(by_prompt) - len(together)
    assert len(together) > 30 and equal > 3 and alone > 3
    options = FAST | {"max_steps": 2, "chat_template": "plain", "equal_scores": "drop", "learning_rate": 1e-4}
    for loss in ("tpo", "rloo"):
        run = train(shared / "models" / "stories260K", short, tmp_path / loss, loss=loss, **options)
        first, second = steps(run)
        assert abs(first["margin"]) < 1e-3 and abs(second["margin"]) > 0 and second["grad_norm"] > 0
    assert (
        f"groups: {len(together) - equal} of 2 to 3 scored answers; with equal scores: {equal} (dropped); "
        f"left out: {alone} answers that are alone, 0 without a score"
    ) in capsys.readouterr().err


def test_a_loss_of_ones_own_on_groups(model: Path, tmp_path: Path) -> None:
    """It reads z0 as well: partners come from other prompts, and groups stay whole beside them."""
    (tmp_path / "mine.py").write_text(
        "import prospect\n"
        "@prospect.loss(view='groups', unit='examples')\n"
        "def regress(log_ratio, z0, score, group, *, beta=0.1):\n"
        "    sizes = group.diff()\n"
        "    means = score.new_tensor([part.mean() for part in score.split(sizes.tolist())])\n"
        "    return (beta * (log_ratio - z0) - score + means.repeat_interleave(sizes)) ** 2\n"
    )
    name = f"{tmp_path / 'mine.py'}:regress"
    whole = train(model, groups(MANY), tmp_path / "whole", loss=name, **FAST | {"precision": "fp64"})
    parts = train(model, groups(MANY), tmp_path / "parts", loss=name, token_budget=24, **FAST | {"precision": "fp64"})
    for one, two in zip(steps(whole), steps(parts), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-9) and "z0" in one
    assert max(step["rows"] for step in steps(whole)) >= 9
