"""Malicious raters among the simulated users: the cap bounds what they decide."""

from __future__ import annotations

import random

import numpy as np
import pytest

from prospect.data.raters import Raters
from prospect.demo import users
from prospect.demo.world import ask
from prospect.feedback.records import Completion, Record, examples

HONEST, EACH = 40, 15


def poisoned(malicious: int, each: int) -> tuple[list[Record], list[bool]]:
    """Thumbs of HONEST users, EACH, and of malicious ones who praise what is wrong and blame what is right; and which
    thumbs are the opposite of the users' taste."""
    rng = random.Random(malicious)
    raters = [f"user {k}" for k in range(HONEST) for _ in range(EACH)]
    raters += [f"troll {k}" for k in range(malicious) for _ in range(each)]
    records, wrong = [], []
    for i, by in enumerate(raters):
        question = ask(rng)
        right = rng.random() < 0.5
        claim = " and ".join(question.expected) if right and question.expected else rng.choice(question.wrong)
        verdict = users.judge(question, question.forms[0].format(claim))
        label = not verdict.desirable if by.startswith("troll") else users.thumb(verdict, rng)
        if label is not None:
            records.append(Record(f"r{i}", question.text, (Completion(f"r{i}/0", claim, label, by=by),)))
            wrong.append(label != verdict.desirable)
    return records, wrong


@pytest.mark.parametrize(("malicious", "each"), [(1, 400), (2, 300), (4, 150)])
def test_the_damage_is_bounded(malicious: int, each: int) -> None:
    """Of the weight that trains, what says the opposite of the users' taste: much without a cap, with one at most the
    malicious raters' shares and the honest users' slips."""
    limit = 0.04
    records, wrong = poisoned(malicious, each)
    rows = examples(records, "binary")
    label = np.array([row.desirable is True for row in rows])

    def balance(up: float, down: float) -> tuple[float, float]:
        return max(1.0, down / up), max(1.0, up / down)

    def damage(weight: np.ndarray) -> float:
        up, down = balance(float(weight[label].sum()), float(weight[~label].sum()))
        training = weight * np.where(label, up, down)
        return float(training[np.array(wrong)].sum() / training.sum())

    cap = Raters.of(records, rows).cap(np.ones(len(rows)), label, limit, balance)
    before, after = damage(np.ones(len(rows))), damage(cap.factors)
    trolls = [name for name in cap.after if name.startswith("troll")]
    assert sum(cap.before[name] for name in trolls) > 0.4 and before > 0.4
    assert all(cap.after[name] == pytest.approx(limit) for name in trolls) and set(cap.lowered) == set(trolls)
    assert after < malicious * limit + 2 * users.NOISE
