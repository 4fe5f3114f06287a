"""Feedback, models and readers of advice that the tests of `recommend` share."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

from prospect.cli.options import parse, split_off
from prospect.doctor.recommend.facts import (
    AfterSft,
    Facts,
    Model,
    measure,
)
from prospect.doctor.recommend.rules import Recommendation, recommend
from prospect.evaluate.advice import Advice
from prospect.feedback.load import load
from prospect.training.config import TrainConfig

Rows = Sequence[dict[str, Any]]

EIGHT, THREE, THIRTEEN = 8_030_000_000, 3_000_000_000, 13_000_000_000


def thumbs(up: int, down: int, per_prompt: int = 1) -> Rows:
    labels = [i % (up + down) < up for i in range(up + down)]
    labels = sorted(labels, key=lambda label: label) if per_prompt == 1 else labels[::-1]
    step = len(labels) // per_prompt or 1
    return [
        {"prompt": f"question {i % step}?", "completion": f"answer {i:05}", "label": label}
        for i, label in enumerate(labels)
    ]


def pairs(n: int, reversed_: int = 0, agreed: int = 0) -> Rows:
    """`reversed_` of the pairs are also judged the other way round, `agreed` of them once more the same way."""
    rows = [{"prompt": f"question {i}?", "chosen": f"good {i:05}", "rejected": f"bad! {i:05}"} for i in range(n)]
    back = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows[:reversed_]]
    return [*rows, *back, *rows[reversed_ : reversed_ + agreed]]


def scores(values: Sequence[float]) -> Rows:
    return [{"prompt": f"question {i // 3}?", "completion": f"answer {i:05}", "score": v} for i, v in enumerate(values)]


def facts(rows: Rows) -> Facts:
    return measure(load(list(rows)))


def base(parameters: int = EIGHT) -> Model:
    return Model("base", parameters, chat_template=False)


def tuned(parameters: int | None = EIGHT, **more: Any) -> Model:
    return Model("tuned", parameters, chat_template=True, **more)


def named(found: Recommendation, name: str) -> Advice:
    return next(p for p in found.proposals if p.name == name)


def advised(rows: Rows, model: Model | None = None, after_sft: AfterSft = "unknown") -> Recommendation:
    return recommend(facts(rows), model, after_sft)


def parses(line: str) -> TrainConfig | None:
    """The configuration a printed `prospect train` stands for; None for another command."""
    inner = re.sub(r"^for (\w+) in (\S+) .*?; do (.*); done$", lambda m: m[3].replace(f"${m[1]}", m[2]), line)
    words = shlex.split(inner)
    assert words[0] == "prospect"
    if words[1] != "train":
        return None
    rest, loss_args, _ = split_off(words[2:])
    config = parse(TrainConfig, rest, "train", TrainConfig())
    known = {"kto": {"beta"}, "dpo": {"beta"}, "npo": {"beta"}, "sft": set[str]()}
    assert set(loss_args) <= known[config.loss]
    assert config.model
    assert config.data
    return config


def lines(found: Recommendation) -> list[str]:
    return [*found.commands, *(q.command for q in found.questions if q.command)]
