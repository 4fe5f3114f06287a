"""Losses on groups: published numbers, finite differences, and what must not matter."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from prospect.errors import ConfigError
from prospect.losses import registry
from prospect.losses.group import (
    centred,
    dapo,
    ddo_rm,
    dr_grpo,
    graph_dpo,
    grpo,
    gspo,
    leave_one_out,
    rloo,
    standardised,
    tpo,
    win_rate,
)
from prospect.losses.numerics import segment_log_softmax, segment_sum
from prospect.losses.paired import dpo

LOGP = (-20.0, -22.0, -19.0, -25.0), (-5.0,) * 4, (-8.0, -9.0, -7.0, -8.0)
OLD = (-20.5, -22.0, -19.5, -24.0), (-5.0,) * 4, (-8.0, -9.0, -7.5, -8.0)
SCORES = (1.0, 0.0, 0.0, 1.0), (0.9, 0.1, 0.5, 0.3), (1.0,) * 4


def flat(groups: tuple[tuple[float, ...], ...]) -> Tensor:
    return torch.tensor(list(itertools.chain(*groups)), dtype=torch.float64)


def offsets(*sizes: int) -> Tensor:
    return torch.tensor([0, *sizes]).cumsum(0)


GROUPS = offsets(4, 4, 4)


def draw(sizes: tuple[int, ...] = (3, 1, 5, 2), seed: int = 0, scale: float = 1.0) -> dict[str, Tensor]:
    """Random inputs by name; in the third group two answers have equal scores, in the last all have. The log-ratios of
    tokens have the standard deviation `scale`."""
    g = torch.Generator().manual_seed(seed)
    n = sum(sizes)
    score = torch.rand(n, generator=g, dtype=torch.float64) * 2 - 1
    score[5], score[-1] = score[4], score[-2]
    length = torch.randint(3, 9, (n,), generator=g)
    bounds = offsets(*length.tolist())
    token_logp, old, reference = (torch.randn(3, int(length.sum()), generator=g, dtype=torch.float64) * scale) - 4
    return of_tokens(token_logp, old, reference, bounds) | {"score": score, "group": offsets(*sizes)}


def of_tokens(token_logp: Tensor, old: Tensor, reference: Tensor, bounds: Tensor) -> dict[str, Tensor]:
    """Inputs by name that follow from log-probs of tokens."""
    return {
        "token_logp": token_logp,
        "old_token_logp": old,
        "token_log_ratio": token_logp - reference,
        "offsets": bounds,
        "logp": segment_sum(token_logp, bounds),
        "old_logp": segment_sum(old, bounds),
        "reference_logp": segment_sum(reference, bounds),
        "log_ratio": segment_sum(token_logp - reference, bounds),
        "length": bounds.diff(),
    }


Case = tuple[Callable[..., Tensor], tuple[str, ...], str]
READS = {name: term.reads for name, row in registry.LOSSES.items() for term in row.terms if row.view == "groups"}
CASES: dict[str, Case] = {
    "tpo": (tpo, READS["tpo"], "logp"),
    "tpo, eta .3": (partial(tpo, eta=0.3), READS["tpo"], "logp"),
    "ddo_rm": (partial(ddo_rm, eta=2.0, temperature=0.7), READS["ddo_rm"], "logp"),
    "graph_dpo": (graph_dpo, READS["graph_dpo"], "log_ratio"),
    "grpo": (grpo, READS["grpo"], "token_logp"),
    "grpo, spo": (partial(grpo, advantage=win_rate), READS["grpo"], "token_logp"),
    "dapo": (dapo, READS["dapo"], "token_logp"),
    "dr_grpo": (dr_grpo, READS["dr_grpo"], "token_logp"),
    "gspo": (gspo, READS["gspo"], "logp"),
    "rloo": (rloo, READS["rloo"], "logp"),
}
"""Each loss with what it reads, and the input that carries the gradient."""
PER_GROUP = ("tpo", "tpo, eta .3", "ddo_rm", "graph_dpo")


def call(case: Case, inputs: dict[str, Tensor]) -> Tensor:
    loss, reads, _ = case
    return loss(*(inputs[name] for name in reads))


def test_tpo_golden_values() -> None:
    """Three groups of four: a spread of scores, old and new alike, and equal scores."""
    values = tpo(flat(LOGP), flat(OLD), flat(SCORES), GROUPS)
    assert values.tolist() == pytest.approx([1.24118794, 1.38629436, 1.30763636], abs=5e-9)


def test_the_gradient_of_tpo_is_p_less_q() -> None:
    """And it is 0 where the group's probabilities are the target's."""
    inputs = draw()
    logp = inputs["logp"].requires_grad_()
    (slopes,) = torch.autograd.grad(call(CASES["tpo"], inputs).sum(), logp)
    for start, end in itertools.pairwise(inputs["group"].tolist()):
        score, old = inputs["score"][start:end], inputs["old_logp"][start:end]
        deviation = score.std(correction=0)
        u = (score - score.mean()) / (deviation if deviation > 1e-6 else 1)
        p, q = logp[start:end].softmax(0), (old + u).softmax(0)
        torch.testing.assert_close(slopes[start:end], p - q, rtol=0, atol=1e-14)
    target = segment_log_softmax(flat(OLD) + 2 * (flat(SCORES) - 0.5).where(GROUPS[1] > torch.arange(12), 0), GROUPS)
    there = (target - 17.0).requires_grad_()
    (slopes,) = torch.autograd.grad(tpo(there, flat(OLD), flat(SCORES), GROUPS)[0], there)
    assert slopes.abs().max() < 1e-14


@pytest.mark.parametrize("name", [name for name in CASES if name != "ddo_rm"])
def test_gradients_against_finite_differences(name: str) -> None:
    case, inputs = CASES[name], draw(scale=0.1)

    def of(learnt: Tensor) -> Tensor:
        return call(case, inputs | {case[2]: learnt})

    assert torch.autograd.gradcheck(of, inputs[case[2]].clone().requires_grad_())


def test_the_gradient_of_ddo_rm_holds_its_target_still() -> None:
    """By finite differences of the cross-entropy with the target fixed where it was: (p - q) / (tau * length)."""
    case, inputs = CASES["ddo_rm"], draw()
    logp, length, score, group = (inputs[name] for name in case[1])
    mean, targets = logp / length / 0.7, []
    for start, end in itertools.pairwise(group.tolist()):
        a, s = mean[start:end], score[start:end]
        targets.append((a + 2.0 * (s - (a.softmax(0) * s).sum()) / 0.7).softmax(0))
    q = torch.cat(targets)

    def fixed(logp: Tensor) -> Tensor:
        return -segment_sum(q * segment_log_softmax(logp / length / 0.7, group), group)

    torch.testing.assert_close(call(case, inputs), fixed(logp), rtol=0, atol=1e-13)
    assert torch.autograd.gradcheck(fixed, logp.clone().requires_grad_())
    learnt = logp.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(call(case, inputs | {"logp": learnt}).sum(), learnt)
    (expected,) = torch.autograd.grad(fixed(learnt).sum(), learnt)
    torch.testing.assert_close(slopes, expected, rtol=0, atol=1e-15)
    p = torch.cat([mean[a:b].softmax(0) for a, b in itertools.pairwise(group.tolist())])
    torch.testing.assert_close(slopes, (p - q) / 0.7 / length, rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", CASES)
def test_groups_are_alone_and_have_no_order(name: str) -> None:
    """Each group by itself, its answers in another order, gives the same numbers and the same gradient."""
    case, inputs = CASES[name], draw(scale=0.1)
    tokens = [inputs["token_logp"], inputs["old_token_logp"], inputs["token_logp"] - inputs["token_log_ratio"]]
    answers = [range(a, b) for a, b in itertools.pairwise(inputs["offsets"].tolist())]

    def result(order: list[int], *sizes: int) -> tuple[Tensor, Tensor]:
        """The losses, and the slope by every token."""
        index = torch.tensor([k for i in order for k in answers[i]])
        token_logp, *others = (column[index] for column in tokens)
        token_logp.requires_grad_()
        bounds = offsets(*(len(answers[i]) for i in order))
        rows = of_tokens(token_logp, *others, bounds) | {"score": inputs["score"][order], "group": offsets(*sizes)}
        values = call(case, rows)
        slopes = torch.zeros_like(tokens[0])
        slopes[index] = torch.autograd.grad(values.sum(), token_logp)[0]
        return values, slopes

    ends = inputs["group"].tolist()
    whole, slopes = result(list(range(ends[-1])), *inputs["group"].diff().tolist())
    total = torch.zeros_like(slopes)
    for k, (start, end) in enumerate(itertools.pairwise(ends)):
        order = torch.randperm(end - start, generator=torch.Generator().manual_seed(k)) + start
        values, part = result(order.tolist(), end - start)
        total += part
        if name in PER_GROUP:
            torch.testing.assert_close(values, whole[k : k + 1], rtol=0, atol=1e-13)
        elif len(whole) == ends[-1]:
            torch.testing.assert_close(values, whole[order], rtol=0, atol=1e-13)
    torch.testing.assert_close(total, slopes, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_extremes_are_finite(name: str, dtype: torch.dtype) -> None:
    """Tokens of 10,000 nats, scores of a million, lone answers and equal scores."""
    case = CASES[name]
    extremes = torch.tensor([-1e4, -60.0, -1e-9, 0.0, -1e4, -1e4, 0.0, 0.0, -3.0, -2.0], dtype=dtype)
    bounds = torch.arange(11)
    inputs = of_tokens(extremes, extremes.flip(0), extremes.roll(3), bounds)
    score = torch.tensor([1e6, -1e6, 0.0, 0.0, 1e-30, 0.0, 0.0, 5.0, 5.0, 1.0], dtype=dtype)
    inputs |= {"score": score, "group": offsets(4, 3, 2, 1)}
    learnt = inputs[case[2]].clone().requires_grad_()
    values = call(case, inputs | {case[2]: learnt})
    assert values.dtype == dtype and values.isfinite().all()
    (slopes,) = torch.autograd.grad(values.sum(), learnt)
    assert slopes.isfinite().all()


@pytest.mark.parametrize("name", CASES)
def test_nothing_gives_nothing(name: str) -> None:
    none = torch.zeros(0, dtype=torch.float64)
    inputs = of_tokens(none, none, none, offsets()) | {"score": none, "group": offsets()}
    assert call(CASES[name], inputs).shape == (0,)


@pytest.mark.parametrize("name", [name for name in CASES if name != "rloo"])
def test_a_lone_answer_and_a_shift_of_scores_teach_nothing(name: str) -> None:
    case, inputs = CASES[name], draw(scale=0.1)
    learnt = inputs[case[2]].requires_grad_()
    (slopes,) = torch.autograd.grad(call(case, inputs).sum(), learnt)
    lone = inputs["offsets"][3:5].tolist() if case[2] == "token_logp" else (3, 4)
    assert not slopes[lone[0] : lone[1]].any()
    shifted = call(case, inputs | {"score": inputs["score"] + 7.0})
    torch.testing.assert_close(shifted, call(case, inputs), rtol=0, atol=1e-11)


def test_golden_values_of_ddo_rm() -> None:
    """Token means of the same groups, lengths 10, 5 and 8."""
    length = torch.tensor([10] * 4 + [5] * 4 + [8] * 4)
    values = ddo_rm(flat(LOGP), length, flat(SCORES), GROUPS)
    assert values.tolist() == pytest.approx([1.40092168, 1.38629436, 1.38239573], abs=5e-9)


def test_graph_dpo_by_hand_and_with_two_answers() -> None:
    """The reconstruction's golden values; two answers are DPO; no edge joins equal scores."""
    ratios = flat(((3.0, -1.5, 0.0, 1.0), (3.0, -1.5), (3.0, -1.5)))
    scores = flat(((2.0, 0.0, 1.0, 1.0), (1.0, 0.0), (1.0, 1.0)))
    values = graph_dpo(ratios, scores, offsets(4, 2, 2))
    assert values.tolist() == pytest.approx([0.78638825, 0.49324895, 0.0], abs=5e-9)
    assert values[1].item() == pytest.approx(dpo(ratios[:1], ratios[1:2]).item(), abs=1e-15)
    by_hand = []
    for i in (0, 2, 3):
        below = [math.exp(0.1 * ratios[j]) for j in range(4) if scores[j] < scores[i]]
        own = math.exp(0.1 * ratios[i])
        by_hand.append(-math.log(own / (own + sum(below))))
    assert values[0].item() == pytest.approx(sum(by_hand) / 3, abs=1e-14)


GOLDEN_ADVANTAGES: list[tuple[Callable[[Tensor, Tensor], Tensor], tuple[float, ...], tuple[float, ...]]] = [
    (standardised, (0.86587543, -0.86587543, -0.86587543, 0.86587543),
     (1.31707950, -1.02439516, 0.14634217, -0.43902650)),
    (partial(standardised, ddof=0.0, epsilon=1e-2), (0.98039216, -0.98039216, -0.98039216, 0.98039216),
     (1.47153084, -1.14452398, 0.16350343, -0.49051028)),
    (leave_one_out, (0.66666667, -0.66666667, -0.66666667, 0.66666667), (0.6, -0.46666667, 0.06666667, -0.2)),
    (centred, (0.5, -0.5, -0.5, 0.5), (0.45, -0.35, 0.05, -0.15)),
]  # fmt: skip


@pytest.mark.parametrize("advantage", [standardised, centred, leave_one_out, win_rate])
@pytest.mark.parametrize(("score", "size"), [(57.97, 16), (85.48, 11), (12345.67, 3)])
def test_equal_scores_have_no_advantage_in_float32(
    advantage: Callable[[Tensor, Tensor], Tensor], score: float, size: int
) -> None:
    """A mean of equal numbers is rounded, which divided by the group's deviation would push all its answers one way."""
    assert not advantage(torch.full((size,), score), offsets(size)).any()


@pytest.mark.parametrize(("advantage", "first", "second"), GOLDEN_ADVANTAGES)
def test_golden_advantages(
    advantage: Callable[[Tensor, Tensor], Tensor], first: tuple[float, ...], second: tuple[float, ...]
) -> None:
    """GRPO as TRL and as HALOs have it, RLOO, Dr. GRPO; equal scores and a lone answer have none."""
    values = advantage(flat((*SCORES, (4.0,))), offsets(4, 4, 4, 1))
    assert values[:8].tolist() == pytest.approx([*first, *second], abs=5e-9)
    assert values[8:].tolist() == [0.0] * 5


def test_golden_win_rates() -> None:
    """SPO's reward less one half: two answers that win half of the time have none."""
    values = win_rate(flat(((2.0, 0.0, 1.0, -1.0), (3.0, 3.0), (1.0,))), offsets(4, 2, 1))
    assert (values[:4] + 0.5).tolist() == pytest.approx([0.85480993, 0.37306764, 0.62693236, 0.14519007], abs=5e-9)
    assert values[4:].tolist() == [0.0] * 3


TOKENS = of_tokens(
    torch.tensor([-0.8, -2.3, -0.5, -2.0], dtype=torch.float64),
    torch.tensor([-1.0, -2.0, -0.5, -3.0], dtype=torch.float64),
    torch.tensor([-1.1, -2.0, -0.6, -2.5], dtype=torch.float64),
    offsets(4),
) | {"group": offsets(1)}
"""One answer of four tokens. Its score is taken for its advantage."""
GOLDEN_GRADIENTS: list[tuple[str, Callable[..., Tensor], dict[str, float], tuple[float, float, float]]] = [
    ("grpo", grpo, {}, (-1.03520456, 1.43492115, -0.51760228)),
    ("grpo", grpo, {"kl_weight": 0.04}, (-1.03318410, 1.43694160, -0.51558183)),
    ("dapo", dapo, {}, (-1.06055524, 1.43492115, -0.53027762)),
    ("dr_grpo", dr_grpo, {"longest": 8.0}, (-0.51760228, 0.71746057, -0.25880114)),
    ("gspo", gspo, {}, (-1.0004, 1.25232272, -0.5002)),
    ("rloo", rloo, {"kl_weight": 0.0}, (-1.2, 2.45960311, -0.6)),
]


@pytest.mark.parametrize(("name", "loss", "arguments", "expected"), GOLDEN_GRADIENTS)
@pytest.mark.parametrize("k", range(3))
def test_golden_policy_gradients(
    name: str, loss: Callable[..., Tensor], arguments: dict[str, float], expected: tuple[float, ...], k: int
) -> None:
    """Advantages of 1, -1 and one half."""
    inputs = TOKENS | {"score": flat(((1.0, -1.0, 0.5)[k : k + 1],))}
    values = loss(*(inputs[read] for read in READS[name]), advantage=lambda score, group: score, **arguments)
    assert values.mean().item() == pytest.approx(expected[k], abs=5e-9)


@pytest.mark.parametrize("name", [name for name in CASES if name not in PER_GROUP])
def test_where_the_policy_gave_the_answers_the_gradient_is_reinforce(name: str) -> None:
    """Every ratio is 1: the value is minus the mean advantage, 0, and the slope of an answer's log-prob -A."""
    case, inputs = CASES[name], draw(scale=0.1)
    logp = inputs["token_logp"].requires_grad_()
    rows = of_tokens(logp, logp.detach(), logp.detach(), inputs["offsets"])
    rows |= {"score": inputs["score"], "group": inputs["group"]}
    values = call(case, rows)
    kind = {"dr_grpo": centred, "rloo": leave_one_out, "grpo, spo": win_rate}.get(name, standardised)
    advantage = kind(inputs["score"], inputs["group"])
    lengths = rows["length"].double()
    times = {"dapo": lengths, "dr_grpo": lengths / 512}.get(name, torch.ones_like(lengths))
    torch.testing.assert_close(values.sum(), -(advantage * times).sum(), rtol=0, atol=1e-13)
    (slopes,) = torch.autograd.grad(values.sum(), logp)
    per_token = {"dapo": torch.ones_like(advantage), "dr_grpo": torch.ones_like(advantage) / 512}
    per_token |= {"rloo": torch.ones_like(advantage)}
    expected = (-advantage * per_token.get(name, 1 / lengths)).repeat_interleave(rows["length"])
    torch.testing.assert_close(slopes, expected, rtol=0, atol=1e-13)


def test_rloo_pays_for_leaving_the_reference() -> None:
    """Where the old policy is not the reference, each answer's score is less its own divergence."""
    inputs = draw(scale=0.1)
    old, reference, score, group = (inputs[name] for name in ("old_logp", "reference_logp", "score", "group"))
    got = rloo(old, old, reference, score, group, kl_weight=0.3)
    torch.testing.assert_close(got, -leave_one_out(score - 0.3 * (old - reference), group), rtol=0, atol=1e-14)


def test_what_is_about_groups_reads_whole_groups() -> None:
    def torn(logp: Tensor, group: Tensor) -> Tensor:
        return logp

    with pytest.raises(ConfigError, match='group: only a loss with view="groups" and rows="all" is about groups'):
        registry.loss("scores")(torn)
    with pytest.raises(ConfigError, match='group, unit: only a loss with view="groups"'):
        registry.loss("groups", unit="groups", rows="desirable")(torn)
