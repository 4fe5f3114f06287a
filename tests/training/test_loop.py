"""The loop against an independent computation, row by row with the model's own forward; and its invariances in
float64."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from prospect.errors import ModelError, NonFiniteError
from prospect.losses import registry
from prospect.training import checkpoint, loop, ranks
from prospect.training import step as job_module
from prospect.training.batch import Batch, Completions, cut_mismatched, cut_step, mismatched_with
from prospect.training.objective import Objective, step_metrics
from prospect.training.step import estimate_z0, gradient, step_gradient
from tests.helpers.training import (
    Gradients,
    MakeJob,
    close,
    expected_gradient,
    gradients,
    logp,
    micro_batches,
    move,
    pairs,
    queries,
    thumbs,
)


@pytest.mark.parametrize("point", ["mismatched", "unclamped", "zero"])
def test_kto_is_the_papers_objective(make_job: MakeJob, point: str) -> None:
    """Eq. 8 row by row: r of each answer, z0 from the partners' answers, weights, mean over the step."""
    job = make_job(thumbs(16, weights=True), reference_point=point, loss_args={"beta": 0.3, "undesirable_weight": 1.7})
    reference = make_job(thumbs(2))
    move(job)
    rows = job.schedule.steps[0].rows

    def r(prompt_row: int, answer_row: int) -> Tensor:
        prompt = job.dataset.trees[job.dataset.examples[prompt_row].tree].prompt
        answer = job.dataset.completion(job.dataset.examples[answer_row])
        with torch.no_grad():
            before = logp(reference, prompt, answer).sum()
        return logp(job, prompt, answer).sum() - before

    with torch.no_grad():
        mean = (
            torch.stack([r(i, job.schedule.partners[i]) for i in rows]).mean() if point != "zero" else torch.zeros(())
        )
    z0 = {"mismatched": mean.clamp(min=0), "unclamped": mean, "zero": torch.zeros(())}[point].double()
    objective = torch.zeros((), dtype=torch.float64)
    for i in rows:
        row, u = job.dataset.examples[i], 0.3 * (r(i, i) - z0)
        weight = job.objective.arguments["desirable_weight"] if row.desirable else 1.7
        objective = objective + row.weight * weight * (1 - torch.sigmoid(u if row.desirable else -u)) / len(rows)
    got, got_z0, totals = gradients(job)
    assert got_z0 is not None and got_z0.item() == pytest.approx(z0.item(), abs=1e-12)
    assert totals[0] == pytest.approx(objective.item(), abs=1e-12)
    close(got, expected_gradient(job, objective), 1e-12)


def test_dpo_is_the_published_objective(make_job: MakeJob) -> None:
    job, reference = make_job(pairs(8), loss="dpo", loss_args={"beta": 0.2}), make_job(thumbs(2))
    move(job)
    objective = torch.zeros((), dtype=torch.float64)
    rows = job.schedule.steps[0].rows
    for i in rows:
        row = job.dataset.examples[i]
        prompt = job.dataset.trees[row.tree].prompt
        sides = []
        for side in (0, 1):
            answer = job.dataset.completion(row, side)
            sides.append(logp(job, prompt, answer).sum() - logp(reference, prompt, answer).sum().detach())
        objective = objective - torch.nn.functional.logsigmoid(0.2 * (sides[0] - sides[1])) / len(rows)
    got, _, totals = gradients(job)
    assert totals[0] == pytest.approx(objective.item(), abs=1e-12)
    close(got, expected_gradient(job, objective), 1e-12)


def test_sft_is_the_token_mean_of_the_step(make_job: MakeJob) -> None:
    job = make_job(thumbs(16), loss="sft")
    rows = job.schedule.steps[0].rows
    assert all(job.dataset.records[job.dataset.examples[i].tree].completions[0].label for i in rows)
    every = []
    for i in rows:
        row = job.dataset.examples[i]
        every.append(logp(job, job.dataset.trees[row.tree].prompt, job.dataset.completion(row)))
    objective = -torch.cat(every).mean()
    got, z0, totals = gradients(job)
    assert z0 is None and totals[0] == pytest.approx(objective.item(), abs=1e-12)
    close(got, expected_gradient(job, objective), 1e-12)


@pytest.mark.parametrize(("loss", "rows"), [("kto", thumbs(16, per_prompt=2)), ("dpo", pairs(8)), ("sft", thumbs(24))])
def test_gradient_does_not_depend_on_micro_batches(make_job: MakeJob, loss: str, rows: list[dict[str, Any]]) -> None:
    """One micro-batch and eight give the same gradient to 1e-12 in float64, weights after five steps to 1e-10."""
    whole, parts = make_job(rows, loss=loss, epochs=5), make_job(rows, "other", loss=loss, epochs=5, token_budget=24)
    cut = cut_step(parts.dataset, parts.schedule.steps[0].rows, 1, parts.token_budget)[0]
    assert len(cut) >= 4 and len(cut_step(whole.dataset, whole.schedule.steps[0].rows, 1, whole.token_budget)[0]) == 1
    for job in (whole, parts):
        move(job)
    close(gradients(whole)[0], gradients(parts)[0], 1e-12)
    for job in (whole, parts):
        job.schedule = replace(job.schedule, max_steps=5)
        loop.fit(job)
    for (name, a), (_, b) in zip(whole.policy.trainable(), parts.policy.trainable(), strict=True):
        assert (a - b).norm() <= 1e-10 * a.norm(), name


def test_work_on_a_checkpoint_is_called_so(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for gigabytes to be written is not told that step 2 of 2 takes ever longer."""
    job, save, said = make_job(thumbs(16), epochs=1), checkpoint.save, []
    bars = job.log._bars
    monkeypatch.setattr(checkpoint, "save", lambda *a, **k: (said.append(bars._works[-1].title), save(*a, **k)))
    loop.fit(job)
    assert said == ["saving the checkpoint"] and not bars._works


def test_doubling_a_weight_doubles_its_gradient(make_job: MakeJob) -> None:
    rows = thumbs(8)
    light = make_job([{**row, "weight": 1.0 if i == 3 else 0.0} for i, row in enumerate(rows)], weights="none")
    heavy = make_job([{**row, "weight": 2.0 if i == 3 else 0.0} for i, row in enumerate(rows)], weights="none")
    one, two = gradients(light)[0], gradients(heavy)[0]
    close({name: 2 * g for name, g in one.items()}, two, 1e-12)


def test_gradients_accumulate_in_float32_to_1e6(make_job: MakeJob) -> None:
    rows = thumbs(16)
    whole, parts = make_job(rows, precision="fp32"), make_job(rows, precision="fp32", token_budget=24)
    for job in (whole, parts):
        move(job)
    a, b = gradients(whole)[0], gradients(parts)[0]
    total = math.sqrt(sum(float(g.norm()) ** 2 for g in a.values()))
    assert math.sqrt(sum(float((a[n] - b[n]).norm()) ** 2 for n in a)) <= 1e-6 * total


def test_training_separates_the_thumbs(make_job: MakeJob) -> None:
    job = make_job(thumbs(64), epochs=6, precision="fp32", batch_size=16)
    loop.preflight(job)
    loop.fit(job)
    steps = [m for m in job.log.metrics if m["event"] == "step"]
    assert steps[0]["margin"] == pytest.approx(0, abs=1e-4) and steps[0]["loss"] == pytest.approx(0.5, abs=1e-4)
    assert steps[-1]["margin"] > 0.5 and steps[-1]["accuracy"] > 0.8 and steps[-1]["loss"] < 0.42
    assert {"z0", "z0_raw", "z0_se", "z0_n", "grad_norm", "lr", "tokens_per_second", "utilisation"} <= steps[0].keys()
    assert steps[3]["z0_n"] == 16


@pytest.mark.parametrize("loss", ["kto", "dpo"])
@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16"])
def test_rounding_errors_are_no_accuracy(make_job: MakeJob, loss: str, precision: str) -> None:
    """At the first step the policy is its own reference: on which side a row lies is rounding, and is not logged."""
    job = make_job(pairs(32) if loss == "dpo" else thumbs(32), loss=loss, precision=precision, token_budget=24)
    loop.preflight(job)
    loop.fit(job)
    first, *others = [m for m in job.log.metrics if m["event"] == "step"]
    assert "accuracy" not in first and first["saturated"] == 0
    assert all(0 <= step["accuracy"] <= 1 for step in others)


def test_a_row_within_rounding_is_half_right() -> None:
    tokens = Completions(torch.tensor([0.5, 1e-5, -0.5, 0.5]).double(), torch.arange(5), torch.zeros(4).double())
    batch = Batch((tokens,), torch.ones(4).double(), (True, True, True, False), None)
    objective = Objective(registry.find("kto"), registry.arguments(registry.find("kto"), {}))
    found = step_metrics(objective.sums(batch, torch.zeros(()), 1e-3).tolist())
    assert found["accuracy"] == (1 + 0.5 + 0 + 0) / 4
    still = step_metrics(objective.sums(batch, torch.zeros(()), 1.0).tolist())
    assert "accuracy" not in still and "saturated" in still


def test_a_step_starts_without_the_gradients_of_the_last(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody holds them any more: beside the activations they would be the most of a step's memory."""
    job = make_job(thumbs(16), batch_size=4)
    before: list[Any] = []
    alive: list[int] = []

    def watched(*args: Any, **options: Any) -> Any:
        alive.append(sum(of() is not None for of in before))
        found = step_gradient(*args, **options)
        before[:] = [weakref.ref(p.grad) for _, p in job.policy.trainable() if p.grad is not None]
        return found

    monkeypatch.setattr(loop, "step_gradient", watched)
    loop.fit(job)
    assert before and len(alive) > 1 and not any(alive)


def test_a_step_contains_each_partner_once(make_job: MakeJob) -> None:
    job = make_job(thumbs(16))
    for step in job.schedule.steps:
        micros = cut_mismatched(job.dataset, job.schedule.partners, step.rows, 1, 10_000, job.policy.context)[0]
        asked = sorted(q[1].tobytes() for micro in micros for q in queries(micro))
        assert asked == sorted(job.dataset.completion(job.dataset.examples[i]).tobytes() for i in step.rows)


def test_partners_are_cut_to_the_context(make_job: MakeJob) -> None:
    job = make_job(thumbs(16))
    rows = range(len(job.dataset.examples))
    micros = cut_mismatched(job.dataset, job.schedule.partners, rows, 1, 10_000, 8)[0]
    assert all(len(prompt) + len(completion) <= 8 for micro in micros for prompt, completion in queries(micro))


def test_a_nan_names_its_rows_and_takes_no_step(make_job: MakeJob) -> None:
    job = make_job(thumbs(16))
    with torch.no_grad():
        job.policy.trainable()[0][1][7] = math.nan
    before = [p.clone() for _, p in job.policy.trainable()]
    with pytest.raises(NonFiniteError, match="step 1: the loss is nan.*Its rows: ") as error:
        loop.fit(job)
    assert set(error.value.rows) == {job.dataset.examples[i].id for i in job.schedule.steps[0].rows}
    assert all(torch.equal(a, p) or a.isnan().any() for a, (_, p) in zip(before, job.policy.trainable(), strict=True))


def test_preflight_refuses_a_policy_that_is_not_the_reference(make_job: MakeJob) -> None:
    job = make_job(thumbs(16))
    move(job)
    with pytest.raises(ModelError, match="log-ratios are not 0"):
        loop.preflight(job)


def test_rows_longer_than_the_token_budget_train(make_job: MakeJob) -> None:
    """Each is alone in its micro-batch, and no micro-batch is empty."""
    job = make_job(thumbs(16), token_budget=2, max_steps=1)
    loop.preflight(job)
    whole = gradients(make_job(thumbs(16), "whole", max_steps=1))[0]
    close(gradients(job)[0], whole, 1e-10)


@pytest.mark.parametrize("error", [1e-6, -1e-6])
def test_no_rounding_error_chooses_the_side_of_the_clamp(make_job: MakeJob, error: float) -> None:
    """With --z0-gradient the first step is the one without it, whatever the sign of r's rounding errors: z0 is 0 and
    stands at its clamp. Later the sign of the mean counts."""
    job = make_job(thumbs(16), z0_gradient=True)
    original = job.reference
    assert original is not None

    class Rounded:
        def scores(self, trees: Any, like: Tensor) -> Tensor:
            return original.scores(trees, like) - error

    job.reference = Rounded()
    got, z0, _ = gradients(job, at_reference=loop._at_reference(job, 1))
    assert z0 is not None and z0.item() == 0
    close(got, gradients(make_job(thumbs(16), "plain"))[0], 1e-5)
    _, z0, _ = gradients(job, at_reference=loop._at_reference(job, 2))
    assert z0 is not None and (z0.item() > 0) == (error > 0)


@pytest.mark.parametrize(
    ("modifiers", "arguments", "steps"),
    [
        ([], {}, {1}),
        (["tr"], {"every": 2, "mix": 1.0}, {1, 3, 5}),
        (["tr"], {"every": 2, "mix": 0.5}, {1}),
        (["humanline"], {}, {1}),
    ],
)
def test_when_the_policy_is_the_reference(
    make_job: MakeJob, modifiers: list[str], arguments: dict[str, float], steps: set[int]
) -> None:
    job = make_job(thumbs(16), modify=modifiers, loss_args=arguments)
    assert {step for step in range(1, 7) if loop._at_reference(job, step)} == steps


def test_preflight_refuses_a_frozen_model(make_job: MakeJob) -> None:
    job = make_job(thumbs(16))
    job.policy.model.requires_grad_(False)
    with pytest.raises(ModelError, match="nothing in this model is trainable"):
        loop.preflight(job)


def test_out_of_memory_halves_the_budget_and_repeats_the_step(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same gradient as without the accident, which strikes in the middle of the step."""
    plain, tight = make_job(thumbs(16), token_budget=400), make_job(thumbs(16), token_budget=400)
    for job in (plain, tight):
        move(job)
    expected = gradients(plain)[0]

    def short_of_memory(original: Any) -> Any:
        def compute(policy: Any, trees: Any, *args: Any, **options: Any) -> Any:
            if sum(len(t.prompt) + len(c) for t in trees for c in t.completions) > 60 and torch.is_grad_enabled():
                raise torch.cuda.OutOfMemoryError
            return original(policy, trees, *args, **options)

        return compute

    for name in ("compute", "compute_with"):
        monkeypatch.setattr(job_module, name, short_of_memory(getattr(job_module, name)))
    close(gradients(tight)[0], expected, 1e-12)
    assert tight.token_budget < 400 and any("out of memory" in m.get("message", "") for m in tight.log.metrics)


def test_an_idle_rank_computes_nothing_that_counts(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """More ranks than rows: the shares of all ranks, computed in turn, add up to the whole gradient."""
    job = make_job(thumbs(4), batch_size=2)
    move(job)
    whole = gradients(job)[0]
    step = job.schedule.steps[0]
    z0 = estimate_z0(job, step, [micro_batches(job)], None)
    total: Gradients = {name: torch.zeros_like(g) for name, g in whole.items()}
    monkeypatch.setattr(ranks, "total", lambda values: values)
    monkeypatch.setattr(ranks, "any_rank", lambda flag, device: flag)
    monkeypatch.setattr(ranks, "sum_gradients", lambda parameters: None)
    for rank in range(5):
        job.rank, job.ranks = rank, 5
        for _, p in job.policy.trainable():
            p.grad = None
        gradient(job, step, cut_step(job.dataset, step.rows, 5, job.token_budget)[rank], z0)
        for name, p in job.policy.trainable():
            if p.grad is not None:
                total[name] += p.grad
    close(total, whole, 1e-12)


def test_prompts_of_mismatched_answers_are_not_computed_again(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a step is one micro-batch; the gradient and z0 are those of a step in many."""
    options = {"reference_point": "unclamped"}
    whole, cut = make_job(thumbs(16), **options), make_job(thumbs(16), token_budget=60, **options)
    for job in (whole, cut):
        move(job)
    expected, z0, _ = gradients(cut)
    tokens = []
    decoder = whole.policy.decoder

    def counted(*args: Any, **inputs: Any) -> Any:
        tokens.append(inputs["input_ids"].numel())
        return original(*args, **inputs)

    original = decoder.forward
    monkeypatch.setattr(decoder, "forward", counted)
    found, same, _ = gradients(whole)
    assert z0 is not None and same is not None and z0.item() != 0
    assert same.item() == pytest.approx(z0.item(), rel=1e-12)
    close(found, expected, 1e-12)
    rows = [whole.dataset.examples[i] for i in whole.schedule.steps[0].rows]
    answers = sum(whole.dataset.length(row) - 1 for row in rows)
    assert len(tokens) == 2 and tokens[1] == answers < tokens[0]


def test_both_passes_of_a_step_share_the_weights_that_are_cast(make_job: MakeJob) -> None:
    """In bfloat16. Training's numbers and gradients are the same as alone, to the bit."""
    job = make_job(thumbs(8), precision="bf16")
    move(job)
    (micro,) = cut_step(job.dataset, job.schedule.steps[0].rows, 1, job.token_budget)[0]
    more = mismatched_with(job.dataset, job.schedule.partners, micro, job.policy.context)
    parameters = dict(job.policy.trainable())
    casts: Counter[int] = Counter()

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._to_copy.default:
                casts[args[0].data_ptr()] += 1
            return func(*args, **(kwargs or {}))

    with Counting():
        mine, beside = job.compute_with(micro.trees, [tree.completions for tree in more.trees])
    found = torch.autograd.grad(mine.token_logp.sin().sum(), list(parameters.values()))
    once = [p for name, p in parameters.items() if name.endswith(("q_proj.weight", "o_proj.weight", "up_proj.weight"))]
    assert once and all(casts[p.data_ptr()] == 1 for p in once)

    alone = job.compute(micro.trees)
    expected = torch.autograd.grad(alone.token_logp.sin().sum(), list(parameters.values()))
    assert torch.equal(mine.token_logp, alone.token_logp)
    for name, a, b in zip(parameters, found, expected, strict=True):
        assert torch.equal(a.to_dense(), b.to_dense()) and a.to_dense().any(), name
    with torch.no_grad():
        torch.testing.assert_close(beside.token_logp, job.compute(more.trees).token_logp, rtol=0, atol=0.05)


def test_preflight_goes_on_with_smaller_micro_batches(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job, original = make_job(thumbs(16)), vars(job_module)["compute"]

    def small(policy: Any, trees: Any, *args: Any, **options: Any) -> Any:
        if len(trees) > 2:
            raise torch.OutOfMemoryError
        return original(policy, trees, *args, **options)

    monkeypatch.setattr(job_module, "compute", small)
    loop.preflight(job)
    assert job.token_budget < 4096
    (noise,) = [m for m in job.log.metrics if m["event"] == "preflight"]
    assert 0 <= noise["noise_max"] < 1e-10


def test_preflight_finds_log_ratios_that_are_nan(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(thumbs(8))
    with torch.no_grad():
        job.policy.base.get_input_embeddings().weight[:] = float("nan")
    with pytest.raises(ModelError, match="its log-ratios are not 0: nan nats"):
        loop.preflight(job)


@pytest.mark.parametrize("tensor", [True, False])
def test_a_first_step_that_is_nan_is_no_matter_of_the_learning_rate(make_job: MakeJob, tensor: bool) -> None:
    job = make_job(thumbs(8), loss="sft")
    if tensor:  # a token that the checks at load did not meet
        with torch.no_grad():
            job.policy.base.get_input_embeddings().weight[5] = float("nan")
    else:
        job.objective.terms[:] = [(term, lambda *x: x[0] / 0 * 0) for term, _ in job.objective.terms]
    with pytest.raises(NonFiniteError) as caught:
        loop.fit(job)
    message = str(caught.value)
    assert "Lower --learning-rate" not in message
    assert ("tensor model.embed_tokens.weight" if tensor else "is still the start model") in message
