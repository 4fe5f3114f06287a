"""A made-up run folder with everything in it, seeded: what `prospect train` leaves behind, without training
anything."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prospect.evaluate.heldout import Heldout, measure

QUESTIONS = (
    "What is 17 + 25?",
    "What is the opposite of cold?",
    "Spell the word garden.",
    "How many letters has river?",
)
FakeRun = Callable[..., Path]


@pytest.fixture
def fake_run(tmp_path: Path) -> FakeRun:
    """make(steps=..., name=...) -> a full run folder."""

    def make(steps: int = 128, name: str = "run", seed: int = 0) -> Path:
        return write_fake_run(tmp_path / name, steps, seed)

    return make


def write_fake_run(folder: Path, steps: int = 128, seed: int = 0) -> Path:
    """Every file of the run-folder schema, with figures shaped like those of a KTO run that went well."""
    folder.mkdir(parents=True)
    _write(folder / "config.json", _config(steps, seed))
    lines = [json.dumps(event) for event in _metrics(steps, seed)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    before, after = heldout(0.0, seed), heldout(1.0, seed)
    evaluation = {
        "before": before.to_json(),
        "after": after.to_json(),
        "policy": "run/model",
        "reference": "tiny",
        "beta": 0.1,
    }
    _write(folder / "evaluation.json", evaluation)
    _write(folder / "check.json", _check())
    samples = [
        {"step": step, "prompt": question, "completion": answer}
        for step, answers in (
            (0, ("i dont know lol", "hot", "", "ask someone")),
            (steps // 2, ("42", "warm", "g-a-r", "5")),
            (steps, ("42.", "Hot.", "g a r d e n", "River has 5 letters.")),
        )
        for question, answer in zip(QUESTIONS, answers, strict=True)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples), encoding="utf-8")
    _write(folder / "story.json", _story())
    return folder


def heldout(strength: float, seed: int, prompts: int = 150, per_prompt: int = 4) -> Heldout:
    """A measurement of rewards that know the thumb as well as `strength` says; 0 is an untrained policy."""
    rng = np.random.default_rng((seed, 7))
    n = prompts * per_prompt
    prompt = np.repeat(np.arange(prompts), per_prompt)
    good = rng.random(n) < 0.4
    length = rng.integers(4, 30, n) + 3 * good
    reference = -1.4 * length + rng.normal(0, 4, n)
    reward = strength * (rng.normal(0, 0.9, n) + rng.normal(0, 0.4, prompts)[prompt] + np.where(good, 0.4, -1.1))
    return measure(
        reward=reward,
        desirable=good,
        prompt=prompt,
        length=length,
        reference_logp=reference,
        logp=reference + reward / 0.1,
        z0=0.0,
        beta=0.1,
        seed=seed,
        resamples=200,
    )


def _metrics(steps: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    events: list[dict[str, Any]] = [{"event": "reference", "step": 0, "forwards": 4096, "rows": 4096, "table": "0f3a"}]
    events.append({"event": "preflight", "step": 0, "noise_max": 2e-7, "noise_mean": 3e-8})
    for step in range(1, steps + 1):
        done = 1 - math.exp(-3 * step / steps)
        up, down = 0.5 * done + rng.gauss(0, 0.12), -1.6 * done + rng.gauss(0, 0.2)
        raw = -6 * done + rng.gauss(0.3, 1.0)
        events.append(
            {
                "event": "step",
                "step": step,
                "epoch": step * 2 // (steps + 1),
                "rows": 32,
                "tokens": 900 + rng.randrange(200),
                "loss": 0.5 - 0.22 * done + rng.gauss(0, 0.03),
                "reward_desirable": up,
                "reward_undesirable": down,
                "margin": up - down,
                "accuracy": min(1.0, max(0.0, 0.5 + 0.35 * done + rng.gauss(0, 0.06))),
                "saturated": 0.1 * done,
                "z0": max(0.0, raw),
                "z0_raw": raw,
                "z0_se": 0.9 + 0.2 * rng.random(),
                "z0_n": 32,
                "grad_norm": 2.0 + 3 * math.exp(-4 * step / steps) + abs(rng.gauss(0, 0.6)),
                "lr": 2e-3 * min(1.0, 10 * step / steps),
                "seconds": 0.6 * step,
                "tokens_per_second": 1500 + rng.gauss(0, 90),
            }
        )
        if step % max(1, steps // 6) == 0:
            events.append(
                {
                    "event": "eval",
                    "step": step,
                    "auc": 0.5 + 0.36 * done,
                    "accuracy": 0.5 + 0.3 * done,
                    "margin": 1.5 * done,
                    "nll": 1.4,
                }
            )
    events.append({"event": "warning", "message": "3 rows have no mismatched partner and do not enter z0"})
    return events


def _config(steps: int, seed: int) -> dict[str, Any]:
    return {
        "config": {
            "model": "models/tiny-assistant",
            "data": "feedback/thumbs.jsonl",
            "loss": "kto",
            "clip": 10.0,
            "batch_size": 32,
            "track": [],
            "keep_best": False,
        },
        "loss": {
            "terms": ["prospect.losses.unpaired:kto"],
            "arguments": {"beta": 0.1, "desirable_weight": 1.56, "undesirable_weight": 1.0},
            "reference_point": "mismatched",
            "learning_rate": 2e-3,
        },
        "versions": {"prospect": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "python": "3.11.9"},
        "git": "4c1f0e9d2b7a6580",
        "data": {
            "path": "feedback/thumbs.jsonl",
            "format": "prospect",
            "digest": "9b1d" * 16,
            "rows": 2048,
            "heldout_rows": 600,
        },
        "model": {
            "path": "models/tiny-assistant",
            "digest": "77aa" * 16,
            "architecture": "LlamaForCausalLM",
            "parameters": 1_812_480,
            "context": 256,
        },
        "engine": {"path": "tree", "reason": "", "precision": "fp32", "device": "cpu", "token_budget": 4096},
        "schedule": {"steps": steps, "blocks": 1024, "grouped": False, "ranks": 1},
        "seed": seed,
    }


def _check() -> dict[str, Any]:
    findings = [
        {
            "key": "contradictions",
            "level": "warning",
            "message": "6 answers have both thumbs. They pull both ways and teach nothing.",
            "examples": ["line 12 and line 90"],
            "data": {"count": 6},
        },
        {
            "key": "length",
            "level": "warning",
            "message": "Length alone predicts the thumb with AUC 0.62: longer answers are liked.",
            "examples": [],
            "data": {"auc": 0.62},
        },
        {
            "key": "balance",
            "level": "info",
            "message": "39 % of the thumbs are up; --weights auto counts each of them 1.56 times.",
            "examples": [],
            "data": {},
        },
    ]
    return {
        "exit_code": 0,
        "summary": {
            "prompts": 1900,
            "completions": 2048,
            "desirable": 799,
            "undesirable": 1249,
            "tokens": {"shortest": 9, "longest": 61},
        },
        "findings": findings,
    }


def _story() -> dict[str, Any]:
    return {
        "title": "A small assistant, 2,048 thumbs and a minute of training",
        "paragraphs": [
            "An assistant of 1.8 million parameters had learnt from examples of mixed quality: right, wrong, rude, "
            "rambling and evasive ones. Simulated users asked it questions and gave a thumb to some of its answers, "
            "one in twenty of them by mistake.",
            "Prospect aligned it with those thumbs. Both models then answered 1,000 questions that nobody had asked "
            "before, at temperature 1.",
        ],
        "table": {
            "columns": ["", "temperature 0", "temperature 1"],
            "rows": [["start model", "12.1% (10.2 to 14.2)", "39.1% (36.1 to 42.2)"], ["KTO", "91.0%", "87.3%"]],
        },
        "bars": [
            {"label": "before", "rate": 0.391, "low": 0.361, "high": 0.422, "kind": "base"},
            {"label": "after KTO", "rate": 0.873, "low": 0.851, "high": 0.892},
        ],
        "answers": [
            {
                "prompt": "What is 17 + 25?",
                "before": "why do you ask me, count yourself",
                "after": "17 + 25 = 42.",
                "before_ok": False,
                "after_ok": True,
            },
            {
                "prompt": "What is the opposite of cold?",
                "before": "The opposite of cold is hot.",
                "after": "The opposite of cold is hot.",
                "before_ok": True,
                "after_ok": True,
            },
            {
                "prompt": "What did I have for breakfast?",
                "before": "You had eggs.",
                "after": "I cannot know that.",
                "before_ok": False,
                "after_ok": True,
            },
        ],
    }


def _write(path: Path, values: object) -> None:
    path.write_text(json.dumps(values), encoding="utf-8")
