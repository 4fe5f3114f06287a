"""Every row of the table through the loop, against a computation that knows nothing of trees and micro-batches."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from prospect.errors import ConfigError, DataError
from prospect.feedback.records import Example
from prospect.losses.registry import LOSSES, Input, bound
from prospect.training import loop
from prospect.training.batch import Batch, Completions, MicroBatch, batch_of
from prospect.training.objective import OF_ANSWERS, OF_ROWS
from prospect.training.step import Job, step_gradient
from tests.helpers.training import (
    MakeJob,
    close,
    data,
    expected_gradient,
    gradients,
    job_of,
    log_probs,
    logp,
    micro_batches,
    move,
    pairs,
    thumbs,
    with_live,
)


def independent(job: Job, start: Job) -> Tensor:
    """The objective of the first step, each sequence by itself through the models' own forward, each term by hand."""
    loss = job.objective.loss
    rows = [job.dataset.examples[i] for i in job.schedule.steps[0].rows]
    sides = 2 if job.objective.loss.view == "pairs" else 1
    tokens: list[list[Tensor]] = [[] for _ in range(sides)]
    before: list[list[Tensor]] = [[] for _ in range(sides)]
    for row in rows:
        for side in range(sides):
            prompt, answer = job.dataset.trees[row.tree].prompt, job.dataset.completion(row, side)
            tokens[side].append(logp(job, prompt, answer))
            before[side].append(logp(start, prompt, answer).detach())
    z0 = step_gradient(job, job.schedule.steps[0], None)[0].value
    there = {"device": job.policy.device}
    up = torch.tensor([bool(row.desirable) for row in rows], **there)
    seeded = torch.Generator().manual_seed(job.config.seed * 1_000_003 + 1)
    draw = torch.rand(len(rows), generator=seeded, dtype=torch.float64).to(job.policy.device)
    total = torch.zeros((), dtype=torch.float64)
    for term in job.objective.loss.terms:
        keep = [
            k for k in range(len(rows))
            if term.rows == "all" or loss.view in ("pairs", "text") or bool(up[k]) == (term.rows == "desirable")
        ]  # fmt: skip
        every = range(sides) if term.rows == "all" else [0] if sides == 1 or term.rows == "desirable" else [1]
        found: list[Any] = []
        for name in term.reads:
            if name in ("group", "old_logp"):
                sizes = Counter(rows[k].tree for k in keep).values()
                before_sums = torch.stack([before[0][k].sum() for k in keep])
                found.append(torch.tensor([0, *sizes]).cumsum(0) if name == "group" else before_sums)
                continue
            if name in ("target", "target_logp"):
                found.append(torch.stack([of_target(job, rows[k], name) for k in keep]))
                continue
            if name in ("reference_quantile", "reference_count"):
                others = [job.dataset.records[rows[k].tree].reference_scores for k in keep]
                below = [sum(x <= (rows[k].score or 0.0) for x in o) for k, o in zip(keep, others, strict=True)]
                counts = torch.tensor([len(o) for o in others], dtype=torch.float64, **there)
                shares = torch.tensor(below, dtype=torch.float64, **there) / counts
                found.append(shares if name == "reference_quantile" else counts)
                continue
            if name in ("desirable", "z0", "score", "margin"):
                scores = torch.tensor([rows[k].score or 0.0 for k in keep], dtype=torch.float64, **there)
                found.append({"desirable": up[keep], "z0": z0, "score": scores, "margin": scores}[name])
                continue
            if name == "draw":
                found.append(draw)
                continue
            if name == "running":  # the first step's mean and standard deviation, of weight 1 - momentum
                gap = found[0].detach() - found[1].detach()
                found.append(0.1 * torch.stack([gap.mean(), gap.std(), gap.new_ones(())]))
                continue
            for side in every:
                if name == "win_rate":
                    rates = [job.dataset.records[rows[k].tree].completions[rows[k].branches[side]].score for k in keep]
                    found.append(torch.tensor(rates, dtype=torch.float64, **there))
                    continue
                mine, theirs = [tokens[side][k] for k in keep], [before[side][k] for k in keep]
                lengths = torch.tensor([len(x) for x in mine], **there)
                ways: dict[str, Callable[..., Tensor]] = {
                    "log_ratio": lambda a=mine, b=theirs: torch.stack([d.sum() for d in map(torch.sub, a, b)]),
                    "logp": lambda a=mine: torch.stack([x.sum() for x in a]),
                    "reference_logp": lambda b=theirs: torch.stack([y.sum() for y in b]),
                    "length": lambda n=lengths: n,
                    "token_logp": lambda a=mine: torch.cat(a),
                    "old_token_logp": lambda b=theirs: torch.cat(b),
                    "token_log_ratio": lambda a=mine, b=theirs: torch.cat(a) - torch.cat(b),
                    "offsets": lambda n=lengths: torch.cat([n.new_zeros(1), n.cumsum(0)]),
                    "reference_kl": partial(whole_kls, job, start, [rows[k] for k in keep], side),
                    "token_reference_kl": partial(token_kls, job, start, [rows[k] for k in keep], side),
                    "value": lambda a=mine: torch.zeros(sum(map(len, a)), dtype=torch.float64, **there),
                    "prompt_value": lambda a=mine: torch.zeros(len(a), dtype=torch.float64, **there),
                }
                found.append(ways[name]())
        values = bound(term.function, job.objective.arguments)(*found)
        weight = torch.tensor([rows[k].weight for k in keep], dtype=torch.float64, **there)
        if term.unit == "tokens":
            lengths = torch.tensor([len(tokens[every[0]][k]) for k in keep], **there)
            total = total + term.coefficient * (values * weight.repeat_interleave(lengths)).sum() / int(lengths.sum())
        elif term.unit == "groups":
            for value, tree in zip(values, dict.fromkeys(rows[k].tree for k in keep), strict=True):
                of_group = [rows[k].weight for k in keep if rows[k].tree == tree]
                total = total + term.coefficient * value * sum(of_group) / len(of_group) / len(values)
        else:
            total = total + term.coefficient * (values * weight).sum() / len(keep)
    return total


def token_kls(job: Job, start: Job, rows: list[Example], side: int) -> Tensor:
    """KL(pi_ref || pi) of each token, over the vocabulary as the models give it."""
    kls = []
    for row in rows:
        prompt, answer = job.dataset.trees[row.tree].prompt, job.dataset.completion(row, side)
        theirs = log_probs(start, prompt, answer).detach()
        kls.append((theirs.exp() * (theirs - log_probs(job, prompt, answer))).sum(-1))
    return torch.cat(kls)


def whole_kls(job: Job, start: Job, rows: list[Example], side: int) -> Tensor:
    """KL(pi_ref || pi) summed over the tokens of each answer, over the vocabulary as the models give it."""
    kls = []
    for row in rows:
        prompt, answer = job.dataset.trees[row.tree].prompt, job.dataset.completion(row, side)
        theirs = log_probs(start, prompt, answer).detach()
        kls.append((theirs.exp() * (theirs - log_probs(job, prompt, answer))).sum())
    return torch.stack(kls)


def of_target(job: Job, row: Example, name: str) -> Tensor:
    """A row's target (3,), or the log-probs of its answers' tokens where they differ, by words."""
    completion = job.dataset.records[row.tree].completions[row.branches[0]]
    rest = [0.0] * (3 - len(completion.target))
    shares = torch.tensor([share for _, share in completion.target] + rest, dtype=torch.float64)
    if name == "target":
        return shares.to(job.policy.device)
    assert job.policy.tokenizer is not None
    words = [text.split() for text, _ in completion.target]
    vocabulary = job.policy.tokenizer.get_vocab()
    begins = job.dataset.completion(row)[: len(words[0]) - 1]
    prompt = job.dataset.trees[row.tree].prompt
    logps = [logp(job, prompt, np.append(begins, np.int32(vocabulary[word[-1]])))[-1] for word in words]
    return torch.stack([*logps, *[torch.zeros_like(logps[0])] * len(rest)])


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("csft", "bco_density")])
def test_gradient_of_every_loss(make_job: MakeJob, name: str) -> None:
    """In float64 the gradient of the objective written down term by term, and the same in many micro-batches."""
    job, start = job_of(make_job, name), make_job(thumbs(2), "start")
    with_live(job)
    move(job)
    if job.policy.value_head is not None:
        with torch.no_grad():
            for last in list(job.policy.value_head.parameters())[-2:]:
                last.zero_()  # the independent computation takes every value to be 0
    expected = independent(job, start)
    got, _, totals = gradients(job)
    assert totals[0] == pytest.approx(expected.item(), rel=1e-11)
    wanted = expected_gradient_of_model(job, expected)
    close({k: v for k, v in got.items() if k in wanted}, wanted, 1e-10)
    job.token_budget = 24
    parts, _, in_parts = gradients(job)
    assert in_parts[0] == pytest.approx(totals[0], rel=1e-11)
    close(parts, got, 1e-10)


def expected_gradient_of_model(job: Job, objective: Tensor) -> dict[str, Tensor]:
    """Without the value head, which the independent computation holds at its start of 0."""
    head, job.policy.value_head = job.policy.value_head, None
    try:
        return expected_gradient(job, objective)
    finally:
        job.policy.value_head = head


@pytest.mark.parametrize(
    ("name", "modify", "arguments"),
    [
        ("dpo", ("wpo",), {}),
        ("kto", ("wpo",), {}),
        ("simpo", ("wpo",), {}),
        ("dpo", ("humanline",), {}),
        ("kto", ("humanline", "wpo"), {}),
        ("ppo", ("humanline",), {}),
        ("dpo", ("gate",), {"sharpness": 5.0, "threshold": 0.1}),
        ("kto", ("gate",), {"sharpness": 5.0, "threshold": 0.1}),
        ("dpo", ("gate_q10",), {"sharpness": 5.0, "threshold": 0.1}),
        ("kto", ("gate_q10",), {"sharpness": 5.0, "threshold": 0.1}),
        ("kto", ("tr",), {}),
        ("tpo", ("wpo", "tr"), {}),
        ("graph_dpo", ("humanline",), {}),
        ("dpo:0.8,bco_pair:0.2,sft:1", (), {}),
        ("kto:0.5,sft:0.1", (), {}),
        ("tdpo1:0.5,aot:0.5", (), {}),
        ("tdpo2", ("tr",), {}),
        ("kto_target:0.5,ppo:0.5", (), {"kl_weight": 0.3}),
        ("beta_dpo", ("wpo",), {}),
        ("beta_dpo:0.5,ld_dpo:0.5", (), {"alpha": 0.6}),
    ],
)
def test_modifiers_and_mixtures_do_not_depend_on_micro_batches(
    make_job: MakeJob, name: str, modify: tuple[str, ...], arguments: dict[str, float]
) -> None:
    job = job_of(make_job, name, modify=modify, loss_args=arguments)
    with_live(job)
    move(job)
    got = gradients(job)[0]
    job.token_budget = 24
    close(gradients(job)[0], got, 1e-10)


def test_a_mixture_is_the_weighted_sum(make_job: MakeJob) -> None:
    name = "dpo:0.8,bco_pair:0.2,sft:1"
    jobs = {part: job_of(make_job, part, str(k), batch_size=6) for k, part in enumerate(("dpo", "bco_pair", name))}
    sums = {}
    for part, job in jobs.items():
        move(job)
        sums[part] = gradients(job)
    likelihood = independent(jobs[name], make_job(thumbs(2), "start")) - (
        0.8 * independent(jobs["dpo"], make_job(thumbs(2), "s2"))
        + 0.2 * independent(jobs["bco_pair"], make_job(thumbs(2), "s3"))
    )
    assert sums[name][2][0] == pytest.approx(
        0.8 * sums["dpo"][2][0] + 0.2 * sums["bco_pair"][2][0] + likelihood.item(), rel=1e-10
    )


def test_gating_weakens_the_rejected_side_alone(make_job: MakeJob) -> None:
    """Closed (threshold far above any probability) the gate stops the push on rejected answers: only chosen move."""
    closed = job_of(make_job, "dpo", "a", modify=("gate",), loss_args={"sharpness": 1e4, "threshold": 2.0})
    opened = job_of(make_job, "dpo", "b", modify=("gate",), loss_args={"sharpness": 1e4, "threshold": -2.0})
    plain = job_of(make_job, "dpo", "c")
    for job in (closed, opened, plain):
        move(job)
    found = {name: gradients(job) for name, job in (("closed", closed), ("open", opened), ("plain", plain))}
    close(found["open"][0], found["plain"][0], 1e-12)
    assert found["closed"][2][0] == pytest.approx(found["plain"][2][0], rel=1e-12)
    assert any((found["closed"][0][k] - g).norm() > 1e-3 * g.norm() for k, g in found["plain"][0].items())


def test_a_moving_reference_moves_when_it_is_due(make_job: MakeJob) -> None:
    """TR-DPO: reference = mix * policy + (1 - mix) * reference after every second step, weight by weight."""
    job = make_job(thumbs(16), loss="kto", modify=("tr",), loss_args={"every": 2, "mix": 0.25}, epochs=1, batch_size=4)
    with_live(job)
    start = {name: p.detach().clone() for name, p in job.policy.trainable()}
    seen: list[dict[str, Tensor]] = []
    original = loop._move_reference

    def watch(job: Job, step: int, *, behind: bool) -> None:
        original(job, step, behind=behind)
        if not behind:
            seen.append({name: p.detach().clone() for name, p in job.policy.trainable()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_move_reference", watch)
        loop.fit(job)
    assert job.live is not None
    expected = start
    for step, weights in enumerate(seen, start=1):
        if step % 2 == 0:
            expected = {k: 0.25 * weights[k] + 0.75 * expected[k] for k in weights}
    assert all(torch.allclose(job.live.weights[k], expected[k], atol=1e-14) for k in expected)


def test_humanline_looks_one_step_back(make_job: MakeJob) -> None:
    """Its reference is the policy before the last step, so that from the second step on ratios are not 0."""
    job = make_job(thumbs(16), loss="kto", modify=("humanline",), batch_size=4)
    with_live(job)
    loop.fit(job)
    assert job.live is not None
    moved = [float((p.detach() - job.live.weights[name]).abs().max()) for name, p in job.policy.trainable()]
    assert max(moved) > 0
    steps = [m for m in job.log.metrics if m["event"] == "step"]
    assert steps[0]["margin"] == pytest.approx(0, abs=1e-12) and abs(steps[2]["margin"]) > 1e-6


def test_the_value_head_learns(make_job: MakeJob) -> None:
    job = make_job(thumbs(32), loss="ppo", batch_size=16, epochs=3)
    job.policy.add_value_head(0)
    loop.fit(job)
    assert job.policy.value_head is not None
    last = list(job.policy.value_head.parameters())[-2]
    assert last.abs().max() > 0


def test_the_value_of_a_prompt_is_that_of_its_last_token(make_job: MakeJob) -> None:
    """As the model computes it on the prompt alone; and the slope in the head's bias is the mean error."""
    job = job_of(make_job, "dro_v")
    move(job)
    assert job.policy.value_head is not None
    *_, bias = job.policy.value_head.parameters()
    (micro,) = micro_batches(job)
    answers = job.compute(micro.trees)
    expected = []
    for tree in micro.trees:
        ids = torch.tensor([tree.prompt.tolist()], device=job.policy.device)
        with job.policy.autocast():
            last = job.policy.decoder(input_ids=ids)[0][0, -1:]
        expected += job.policy.values(last).tolist() * len(tree.completions)
    assert answers.prompt_value.tolist() == pytest.approx(expected, rel=1e-11)
    gradients(job)
    rows = batch_of(job.dataset, micro, answers)
    assert rows.score is not None and bias.grad is not None
    error = rows.score - rows.sides[0].prompt_value - rows.sides[0].log_ratio
    assert bias.grad.item() == pytest.approx(-error.mean().item(), rel=1e-10)


def test_a_target_is_approached(make_job: MakeJob) -> None:
    """Where all good answers say how their first word is to be spread, the policy learns to spread it so."""
    aim = {"w20": 0.7, "w21": 0.3}
    rows = [{**row, "target": aim} if row["label"] else row for row in thumbs(16)]
    job = make_job(rows, loss="kto_target", batch_size=8, epochs=10, learning_rate=0.01)

    def divergence() -> float:
        with torch.no_grad():
            found = [job.objective.terms[1][1](*of_batch(job, micro)) for micro in micro_batches(job)]
        return torch.cat(found).mean().item()

    before = divergence()
    loop.fit(job)
    assert 0 < divergence() < 0.1 * before


def of_batch(job: Job, micro: MicroBatch) -> tuple[Tensor, Tensor]:
    """Targets of the desirable rows, and the policy's log-probs of their tokens."""
    batch = batch_of(job.dataset, micro, job.compute(micro.trees))
    good = batch.take([k for k, thumb in enumerate(batch.thumbs) if thumb])
    assert good.target is not None
    return good.target, good.sides[0].target_logp


def test_losses_that_read_scores_say_so(make_job: MakeJob) -> None:
    with pytest.raises(DataError, match=r"this loss reads a score per completion.*Losses that fit: kto, .* more"):
        make_job(thumbs(8), loss="tgo")
    with pytest.raises(DataError) as refusal:  # what fits is there for the data as they are: no targets, no scores
        make_job(pairs(8), loss="tpo")
    fit = "kto, kto_surprisal, apo_zero_unpaired, bco, bco_density, npo, npo_kl, sft and "
    assert f"Losses that fit: {fit}" in str(refusal.value)
    with pytest.raises(DataError, match="Losses that fit: tgo, una, dro_v, a_lol, r_lol, awr, sft, "):
        make_job([{**row, "reference_scores": None} for row in data("qrpo")], loss="kto")
    rows = data("qrpo")
    with pytest.raises(DataError, match="compares each answer with answers of the reference.*row line3 has no refer"):
        make_job([*rows[:2], {**rows[2], "reference_scores": None}], loss="qrpo")
    rows = data("kto_target")
    with pytest.raises(DataError, match="kto_target reads a target for every desirable answer, but row line4 has none"):
        make_job([*rows[:3], {**rows[3], "target": None}, *rows[4:]], loss="kto_target")
    with pytest.raises(DataError, match="but row line2 has none, or is cut before its place. Write"):
        make_job(rows, loss="kto_target", max_length=1 + len(rows[1]["prompt"].split()), over_long="cut_completion")
    with pytest.raises(DataError, match="odpo reads a score for both answers"):
        make_job(pairs(4), loss="odpo")
    rows = [{"prompt": "w2 ", "completion": f"w{k + 3}", "score": score} for k, score in enumerate((2.0, 0.5))]
    with pytest.raises(DataError, match=r"sppo reads how often an answer wins, a score from 0 to 1, but .* has 2"):
        make_job(rows, loss="sppo")


def test_a_pair_may_be_chosen_against_its_scores(make_job: MakeJob) -> None:
    """A margin of 0 or below it has no logarithm, but is a goal like others: at the start DPO's slope, less the
    goal's sigmoid, or of a linear margin more of it."""
    rows = [
        {**row, "score_chosen": 0.5, "score_rejected": 0.5 + k % 2} for k, row in enumerate(pairs(4))
    ]  # margins of 0 and -1, by turns
    for name in ("odpo", "odpo:0.5,reward_aware:0.5"):
        with pytest.raises(
            DataError, match=r"how much the chosen answer is scored higher, but in row .* it is by 0\. "
        ):
            make_job(rows, loss=name)
    for name, at_zero, below in (
        ("margin_dpo", 0.6931471805599453, 0.31326168751822286),  # log(1 + e^margin)
        ("reward_aware", 0.0, 0.1109440715),  # KL of sigmoid(-1) from 1/2
    ):
        job = make_job(rows, name, loss=name)
        assert sorted(row.score or 0.0 for row in job.dataset.examples) == [-1, -1, 0, 0]
        assert gradients(job)[2][0] == pytest.approx((at_zero + below) / 2, rel=1e-8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "kto:0.5,dpo:1"}, "mixes losses that read different kinds"),
        ({"loss": "kto", "modify": ("gate",)}, "gate.* needs|kto needs --loss.sharpness VALUE --loss.threshold VALUE"),
        ({"loss": "sft", "modify": ("humanline",)}, "it has no reference"),
        ({"loss": "kto", "modify": ("tr", "humanline")}, "only one of them can move the reference"),
        ({"loss": "kto", "modify": ("wpoo",)}, 'no modifier "wpoo".*"wpo"'),
        ({"loss": "dpo", "z0_gradient": True}, "has no reference point: leave out --z0-gradient"),
        ({"loss": "bco_pair", "reference_point": "mismatched"}, "asks for single answers"),
        (
            {"loss": "kto_surprisal", "reference_point": "running_mean"},
            "averages log-ratios, but kto_surprisal reads none",
        ),
        (
            {"loss": "tdpo1", "reference": "other"},
            "log-probs .* are kept, but the loss tdpo1 reads its whole distribution",
        ),
        ({"loss": "kto", "modify": ("tr",), "reference": "other"}, "but --modify tr moves it. Leave out --reference"),
        ({"loss": "kto", "reference": "other", "reference_point": "token_kl"}, "the reference point token_kl asks it"),
        ({"loss": "kto", "loss_args": {"value": "logistics"}}, 'no "logistics".*"logistic"'),
        ({"loss": "cdpo", "loss_args": {"epsilon": 0.6}}, "epsilon must be from 0 to below 0.5"),
    ],
)
def test_what_does_not_fit_is_refused(make_job: MakeJob, options: dict[str, Any], message: str) -> None:
    rows = pairs(4) if options["loss"] in ("dpo", "bco_pair", "cdpo", "tdpo1") else thumbs(8)
    with pytest.raises(ConfigError, match=message):
        make_job(rows, **options)


def test_a_batch_takes_its_columns_along() -> None:
    """To other devices and to some of its rows, in their order."""
    tokens = Completions(torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([0, 1, 3]))
    columns = {"reference_quantile": torch.tensor([0.25, 0.5]), "target": torch.tensor([[0.5, 0.5], [1.0, 0.0]])}
    batch = Batch((tokens,), torch.ones(2), (True, False), trees=(0, 1), columns=columns).to("cpu").take([1, 0])
    assert batch.reference_quantile is not None and batch.target is not None
    assert batch.reference_quantile.tolist() == [0.5, 0.25] and batch.target.tolist() == [[1.0, 0.0], [0.5, 0.5]]
    assert (batch.reference_count, batch.win_rate) == (None, None)


def test_tokens_tell_the_sums() -> None:
    tokens = Completions(torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([0, 1, 3]), torch.tensor([-1.5, -2.0, -1.0]))
    assert tokens.logp.tolist() == [-1.0, -5.0] and tokens.length.tolist() == [1, 2]
    assert tokens.log_ratio.tolist() == [0.5, -2.0] and tokens.reference_logp.tolist() == [-1.5, -3.0]


@pytest.mark.parametrize(("given", "rate"), [(None, 1e-4), (0.02, 0.02)])
def test_a_linear_value_has_its_own_learning_rate(make_job: MakeJob, given: float | None, rate: float) -> None:
    """The loss's, or the user's: a step of AdamW moves each weight by its rate. At the reference itself, where every u
    is 0, the head has no gradient."""
    options = {} if given is None else {"value_learning_rate": given}
    job = job_of(make_job, "tbpo_q", max_steps=1, learning_rate=1e-3, warmup=0, decay="constant", **options)
    assert isinstance(job.policy.value_head, torch.nn.Sequential) and len(job.policy.value_head) == 1
    slopes = gradients(job)[0]
    assert slopes["value_head.0.weight"].abs().max() < 1e-15 < slopes["model.norm.weight"].abs().max()
    job.policy.model.zero_grad()
    move(job)
    before = {name: p.detach().clone() for name, p in job.policy.trainable()}
    loop.fit(job)
    moved = {name: (p - before[name]).abs().max().item() for name, p in job.policy.trainable()}
    assert moved["value_head.0.weight"] == pytest.approx(rate, rel=1e-3)
    assert moved["model.norm.weight"] == pytest.approx(1e-3, rel=1e-3)


def test_values_of_pairs_that_are_not_zero(make_job: MakeJob) -> None:
    """TBPO-Q's objective and the gradient of policy and head, from the model's own hidden states, token by token; and
    the same in many micro-batches."""
    job, start = job_of(make_job, "tbpo_q"), make_job(pairs(2), "start")
    move(job, 0.3)
    head = job.policy.value_head
    assert head is not None
    terms = []
    for row in [job.dataset.examples[i] for i in job.schedule.steps[0].rows]:
        ratios, values = [], []
        for side in (0, 1):
            prompt, answer = job.dataset.trees[row.tree].prompt, job.dataset.completion(row, side)
            ratios.append(logp(job, prompt, answer) - logp(start, prompt, answer).detach())
            ids = torch.tensor([[*prompt.tolist(), *answer.tolist()]], device=job.policy.device)
            with job.policy.autocast():
                states = job.policy.decoder(input_ids=ids)[0][0, len(prompt) - 1 : -1]
            values.append(head(states.detach())[:, 0])
        shorter = min(map(len, ratios))
        apart = values[1][:shorter] - values[0][:shorter]
        u = 0.1 * (ratios[1][:shorter] - ratios[0][:shorter] + (apart - apart.mean()).clamp(-10, 10))
        terms.append(((u.exp() + u) / 4).mean())
    objective = torch.stack(terms).mean()
    got, _, totals = gradients(job)
    assert totals[0] == pytest.approx(objective.item(), rel=1e-11)
    assert got["value_head.0.weight"].norm() > 1e-6
    close(got, expected_gradient(job, objective), 1e-10)
    job.token_budget = 24
    close(gradients(job)[0], got, 1e-10)


def test_gradients_of_the_value_head_are_summed_over_micro_batches(make_job: MakeJob) -> None:
    job = job_of(make_job, "ppo")
    move(job)
    assert job.policy.value_head is not None
    step = job.schedule.steps[0]
    step_gradient(job, step, None)
    assert all(p.grad is not None for p in job.policy.value_head.parameters())


def test_what_losses_read_are_properties() -> None:
    """A loss's `reads` are names of properties: of a batch's rows, and of the completions on each side of it."""
    rows = {"desirable", "score", "margin", "z0", "group", "old_logp", "reference_quantile", "reference_count"}
    rows |= {"target", "draw", "running"}
    answers = {"win_rate"}
    columns = {"token_logp", "token_sum_p2", "value", "token_reference_kl"}
    properties = {name for name, kind in vars(Completions).items() if isinstance(kind, property)}
    assert rows == OF_ROWS and answers == OF_ANSWERS and {f.name for f in dataclasses.fields(Completions)} >= columns
    assert all(hasattr(Batch, name) or name in {f.name for f in dataclasses.fields(Batch)} for name in rows | answers)
    assert set(get_args(Input)) == rows | answers | columns | properties
