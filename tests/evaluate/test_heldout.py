"""Held-out measurement: the numbers by hand, what the data cannot say, and the engine behind it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit
from transformers import LlamaConfig, LlamaForCausalLM

from prospect.data.dataset import Dataset, TokenReport, Tree
from prospect.engine.policy import Policy
from prospect.evaluate.heldout import Heldout, measure
from prospect.evaluate.scoring import evaluate, queries
from prospect.evaluate.statistics import Interval
from prospect.feedback.records import Example


def known(value: Interval | None) -> Interval:
    assert value is not None
    return value


def simple(**changes: Any) -> Heldout:
    """Six judged answers to three prompts, whose numbers can be had by hand."""
    values: dict[str, Any] = {
        "reward": np.array([1.0, -1.0, 2.0, 0.5, 0.0, -2.0]),
        "desirable": [True, False, True, False, True, False],
        "prompt": np.array([0, 0, 1, 1, 2, 2]),
        "length": np.array([2, 1, 2, 1, 2, 1]),
        "reference_logp": np.array([-3.0, -1.0, -3.0, -1.0, -3.0, -1.0]),
        "logp": np.array([-2.0, -9.0, -4.0, -9.0, -3.0, -9.0]),
        "z0": 0.0,
        "beta": 0.1,
        "resamples": 200,
    }
    return measure(**(values | changes))


def test_numbers_by_hand() -> None:
    found = simple()
    assert (found.n, found.prompts, found.desirable, found.undesirable) == (6, 3, 3, 3)
    assert known(found.auc).value == pytest.approx(8 / 9)  # only 0.0 (up) against 0.5 (down) is wrong
    assert known(found.accuracy).value == pytest.approx(4.5 / 6)  # 0.5 (down) is wrong, 0.0 at z0 counts one half
    assert known(found.margin).value == pytest.approx(1.0 + 2.5 / 3)
    assert known(found.nll).value == pytest.approx(9 / 6)  # liked answers: (2 + 4 + 3) nats over 6 tokens
    assert found.baselines["length"].value == 1.0
    assert found.baselines["reference_logp"].value == 0.0  # as it is, not turned round
    assert found.auc_difference["length"].value == pytest.approx(8 / 9 - 1)
    assert found.auc_difference["reference_logp"].value == pytest.approx(8 / 9 - 1)  # unlikely first ranks them all
    assert known(found.change).value == pytest.approx(10 * 6.5 / 6)  # |rewards| / beta
    assert known(found.nll_change).value == pytest.approx((9 - 9) / 6)
    assert known(found.calibration_gap).value == pytest.approx(float(expit([1, -1, 2, 0.5, 0, -2]).mean()) - 0.5)
    assert sum(b.n for b in found.calibration) == 6


def test_perfect_baselines_keep_an_honest_width() -> None:
    assert simple().baselines["length"].low < 0.5  # one disjoint couple of prompts proves little


def test_z0_moves_the_threshold_and_nothing_else() -> None:
    low, high = simple(), simple(z0=0.75)
    assert low.auc == high.auc
    assert known(low.margin).value == pytest.approx(known(high.margin).value)
    assert known(high.accuracy).value == pytest.approx(5 / 6)  # only the desirable 0.0 lies below


@pytest.mark.parametrize(("thumb", "word"), [(True, "up"), (False, "down")])
def test_one_class_has_no_auc_and_says_so(thumb: bool, word: str) -> None:
    found = simple(desirable=[thumb] * 6)
    assert found.auc is None
    assert found.margin is None
    assert found.roc == ()
    assert found.baselines == {}
    assert any(f"Every thumb is {word}" in note for note in found.notes)
    assert (found.nll is None) is (not thumb)


def test_unjudged_answers_have_a_likelihood_only() -> None:
    found = simple(desirable=[None] * 6)
    assert (found.auc, found.accuracy, found.calibration_gap, found.rewards) == (None, None, None, None)
    assert known(found.nll).value == pytest.approx(36 / 9)
    assert any("No answer has a thumb" in note for note in found.notes)


def test_no_rows_at_all() -> None:
    empty = np.empty(0)
    found = measure(
        reward=empty,
        desirable=[],
        prompt=empty.astype(int),
        length=empty.astype(int),
        reference_logp=empty,
        logp=empty,
        z0=0.0,
        beta=0.1,
    )
    assert found.n == 0
    assert found.auc is None
    assert found.nll is None


def test_few_prompts_are_named() -> None:
    assert any("Only 3 separate prompts" in note for note in simple().notes)
    assert any("one prompt" in note for note in simple(prompt=np.zeros(6, int)).notes)
    assert any("Only 2 separate" in note for note in simple(group=np.array([0, 0, 1, 1, 1, 1])).notes)


def test_differences_are_resampled_together() -> None:
    """Reward and length rise and fall together, so their difference is far surer than either."""
    rng = np.random.default_rng(0)
    label, length = rng.random(300) < 0.5, rng.integers(5, 100, 300)
    found = measure(
        reward=length + rng.normal(0, 1.0, 300), desirable=label, prompt=np.arange(300), length=length,
        reference_logp=-length.astype(float), logp=np.zeros(300), z0=0.0, beta=0.1, resamples=300,
    )  # fmt: skip
    area, lead = known(found.auc), found.auc_difference["length"]
    assert lead.high - lead.low < (area.high - area.low) / 4
    assert lead.low < 0 < lead.high


def test_groups_of_prompts_widen_the_intervals() -> None:
    rng = np.random.default_rng(0)
    conversation = np.repeat(np.arange(40), 10)
    reward, label = rng.normal(size=40)[conversation] + rng.normal(0, 0.1, 400), rng.random(400) < 0.5

    def width(**group: Any) -> float:
        found = known(
            measure(
                reward=reward, desirable=label, prompt=np.arange(400), length=np.ones(400, int), reference_logp=-reward,
                logp=-reward, z0=0.0, beta=0.1, resamples=200, **group,
            ).change
        )  # fmt: skip
        return found.high - found.low

    assert width(group=conversation) > 2 * width()


def test_rounding_errors_are_no_ranking() -> None:
    """An untrained policy's rewards are 0 up to rounding; ranked as they are they would separate perfectly."""
    noise = np.array([1.0, -1.0, 2.0, -3.0, 1.0, -2.0]) * 1e-8
    assert known(simple(reward=noise).auc).value == 1.0
    tied = simple(reward=noise, resolution=1e-4)
    assert known(tied.auc).value == 0.5
    assert known(tied.accuracy).value == 0.5


def test_json_round_trip_is_exact() -> None:
    for found in (simple(), simple(desirable=[True] * 6), simple(desirable=[None] * 6)):
        text = json.dumps(found.to_json(), allow_nan=False)
        assert Heldout.from_json(json.loads(text)) == found
    assert Heldout.from_json(simple().to_json() | {"from_the_future": 1}) == simple()


def test_histogram_keeps_every_answer() -> None:
    rng = np.random.default_rng(0)
    reward = rng.standard_t(1.5, 1000)
    label = rng.random(1000) < 0.5
    ones = np.ones(1000, int)
    found = measure(
        reward=reward,
        desirable=label,
        prompt=np.arange(1000),
        length=ones,
        reference_logp=-reward,
        logp=-reward,
        z0=0.0,
        beta=0.1,
        resamples=20,
    ).rewards
    assert found is not None
    assert sum(found.desirable) == label.sum()
    assert sum(found.undesirable) == (~label).sum()
    assert len(found.edges) == len(found.desirable) + 1


# The engine behind it -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy() -> Policy:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    return Policy(LlamaForCausalLM(config).eval(), None, torch.device("cpu"), "fp32", path="tree")


def tree(name: str, prompt: list[int], *answers: list[int] | None) -> Tree:
    ids = (None if answer is None else np.array(answer, np.int32) for answer in answers)
    return Tree(name, np.array(prompt, np.int32), tuple(ids))


TREES = [
    tree("a", [1, 2, 3], [4, 5], [6, 7, 8], None),
    tree("b", [9, 10], [11], [12, 13, 14, 15]),
    tree("c", [16, 17, 18, 19], [20, 21]),
]
ROWS = [
    Example("a/0", 0, (0,), True, 1.0),
    Example("a/1", 0, (1,), False, 1.0),
    Example("a/2", 0, (2,), False, 1.0),
    Example("b/0 > b/1", 1, (0, 1), None, 1.0),
    Example("c/0", 2, (0,), None, 1.0),
]


def one_by_one(policy: Policy, prompt: Any, answer: Any) -> float:
    """log pi(answer | prompt) by the plainest means."""
    ids = torch.tensor(np.concatenate([prompt, answer]), dtype=torch.long)[None]
    with torch.no_grad():
        logp = policy.model(input_ids=ids).logits[0].log_softmax(-1)
    return float(sum(logp[len(prompt) + k - 1, token] for k, token in enumerate(answer)))


@pytest.mark.parametrize("budget", [1, 12, 8192])
def test_evaluate_agrees_with_one_answer_at_a_time(policy: Policy, budget: int) -> None:
    asked: list[tuple[Any, Any]] = []
    seen: list[tuple[int, int]] = []

    def reference(query: tuple[Any, Any]) -> np.ndarray:
        asked.append(query)
        return np.full(len(query[1]), -1.0, np.float32)

    def progress(done: int, every: int) -> None:
        seen.append((done, every))

    found = evaluate(policy, reference, TREES, ROWS, beta=0.5, token_budget=budget, progress=progress)
    answers = {k: one_by_one(policy, p, a) for k, (p, a) in enumerate(queries(TREES, ROWS, (), 64))}
    lengths = [2, 3, 1, 4, 2]
    rewards = [0.5 * (answers[k] + length) for k, length in enumerate(lengths)]
    # desirable: a/0 and b/0, the chosen one; undesirable: a/1 and b/1
    margin = (rewards[0] + rewards[2]) / 2 - (rewards[1] + rewards[3]) / 2
    assert (found.n, found.prompts, found.desirable, found.undesirable) == (5, 3, 2, 2)
    assert known(found.margin).value == pytest.approx(margin, abs=2e-3)  # rewards are on a grid of beta * 1e-3
    assert found.groups == 3
    assert known(found.nll).value == pytest.approx(-(answers[0] + answers[2] + answers[4]) / 5, abs=1e-5)
    assert seen[-1] == (5, 5)
    assert len(asked) == 5


def test_z0_comes_from_the_mismatched_partners(policy: Policy) -> None:
    partners = [3, 3, 3, 0, -1]
    asked = queries(TREES, ROWS, partners, policy.context)
    # a/2 is over-long but its prompt still meets b's answer; c has no partner
    assert [(q[0].tolist(), q[1].tolist()) for q in asked[5:]] == [
        ([1, 2, 3], [11]),
        ([1, 2, 3], [11]),
        ([1, 2, 3], [11]),
        ([9, 10], [4, 5]),
    ]

    def reference(query: tuple[Any, Any]) -> np.ndarray:
        return np.full(len(query[1]), -9.0, np.float32)

    found = evaluate(policy, reference, TREES, ROWS, beta=0.1, partners=partners)
    ratios = [one_by_one(policy, p, a) + 9 * len(a) for p, a in asked[5:]]
    assert found.z0 == pytest.approx(0.1 * np.mean(ratios), rel=1e-5)


def test_rows_of_one_group_are_resampled_together(policy: Policy) -> None:
    def reference(query: tuple[Any, Any]) -> np.ndarray:
        return np.full(len(query[1]), -1.0, np.float32)

    found = evaluate(policy, reference, TREES, ROWS, beta=0.5, groups=[7, 7, 7, 7, 9])
    assert (found.prompts, found.groups) == (3, 2)
    plain = evaluate(policy, reference, TREES, ROWS, beta=0.5, resamples=0)
    assert plain.groups == 3
    assert np.isnan(known(plain.auc).low)


def test_z0_is_clamped(policy: Policy) -> None:
    def generous(query: tuple[Any, Any]) -> np.ndarray:
        return np.zeros(len(query[1]), np.float32)

    assert evaluate(policy, generous, TREES, ROWS, beta=0.1, partners=[3, 3, 3, 0, 0]).z0 == 0.0


def test_a_repeated_pair_counts_once(policy: Policy) -> None:
    rows = [Example("x", 1, (0, 1), None, 1.0), Example("y", 1, (0, 1), None, 1.0)]
    assert len(queries(TREES, rows, (), 64)) == 2


def test_a_partner_that_does_not_fit_is_cut_as_in_training() -> None:
    trees = [tree("long", list(range(1, 9)), [1]), tree("wide", [1], list(range(1, 9)))]
    rows = [Example("long/0", 0, (0,), True, 1.0), Example("wide/0", 1, (0,), False, 1.0)]
    asked = queries(trees, rows, [1, 0], 12)[2:]
    assert [(len(p), a.tolist()) for p, a in asked] == [(8, [1, 2, 3, 4]), (1, [1])]
    assert [(len(p), len(a)) for p, a in queries(trees, rows, [1, 0], 8)[2:]] == [(1, 1)]
    held = Dataset((), tuple(trees), tuple(rows), TokenReport())
    assert [(p.tolist(), a.tolist()) for p, a in held.mismatched([0, 1], [1, 0], 12)] == [
        (p.tolist(), a.tolist()) for p, a in asked
    ]


def test_policy_that_is_its_own_reference_knows_nothing(policy: Policy) -> None:
    table = {(q[0].tobytes(), q[1].tobytes()): one_by_one(policy, *q) for q in queries(TREES, ROWS, (), 64)}

    def reference(query: tuple[Any, Any]) -> np.ndarray:
        return np.array([table[query[0].tobytes(), query[1].tobytes()]])

    found = evaluate(policy, reference, TREES, ROWS, beta=0.1)
    assert found.auc == Interval(0.5, 0.5, 0.5)
