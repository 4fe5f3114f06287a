"""A run folder as the report reads it: whatever is there, nothing required but the folder itself.

config.json  metrics.jsonl  evaluation.json  check.json  samples.jsonl  story.json
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prospect.data import store
from prospect.errors import ConfigError

Data = dict[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """The files' contents as plain data; an absent file is an empty dict or tuple.

    `steps` and `evaluations` are the lines of metrics.jsonl with those events, `warnings` their messages in order, each
    once. `before` and `after` are held-out measurements (see prospect/evaluate/heldout.py), empty where none was made.
    """

    path: Path
    config: Data
    steps: tuple[Data, ...]
    evaluations: tuple[Data, ...]
    warnings: tuple[str, ...]
    before: Data
    after: Data
    check: Data
    samples: tuple[Data, ...]
    story: Data

    @property
    def options(self) -> Data:
        """The resolved TrainConfig."""
        return section(self.config, "config")

    @property
    def loss(self) -> str:
        """The loss's name, or an empty string."""
        return str(self.options.get("loss") or "")

    @property
    def arguments(self) -> Data:
        """The loss's arguments as used."""
        return section(section(self.config, "loss"), "arguments")

    @property
    def beta(self) -> float:
        """What turned log-ratios into rewards."""
        return number(self.arguments, "beta", number(self.after, "beta", math.nan))

    @property
    def own_reference(self) -> bool:
        """Whether the start model is its own reference, so that every reward is 0 before training."""
        return not self.options.get("reference")

    @property
    def answers(self) -> dict[str, dict[float, str]]:
        """The sampled answers, prompt by prompt in the order they came, by step."""
        by_prompt: dict[str, dict[float, str]] = {}
        for item in self.samples:
            by_prompt.setdefault(str(item["prompt"]), {})[number(item, "step", 0)] = str(item["completion"])
        return by_prompt

    def series(self, name: str) -> list[float]:
        """One figure of every step; NaN where a step lacks it."""
        return [number(step, name) for step in self.steps]

    def has(self, name: str) -> bool:
        """Whether any step tells this figure."""
        return any(not math.isnan(value) for value in self.series(name))


def read(run_dir: Path) -> RunFolder:
    """Read a run folder. Raises ConfigError where it does not exist or where one of its files is no JSON.

    Damaged lines are left out, as --resume does, and counted in a warning.
    """
    if not run_dir.is_dir():
        raise ConfigError(
            f"{run_dir} is no run folder: expected what prospect train wrote, with config.json and metrics.jsonl"
        )
    events, damaged = store.json_lines(run_dir / "metrics.jsonl")
    samples, damaged_samples = store.json_lines(run_dir / "samples.jsonl")
    evaluation = _object(run_dir / "evaluation.json")
    said = [str(e["message"]) for e in events if e.get("event") == "warning" and e.get("message")]
    for name, count in (("metrics.jsonl", damaged), ("samples.jsonl", damaged_samples)):
        if count:
            said.append(f"Damaged lines of {name}, which are left out: {count}.")
    return RunFolder(
        path=run_dir,
        config=_object(run_dir / "config.json"),
        steps=tuple(e for e in events if e.get("event") == "step" and not math.isnan(number(e, "step"))),
        evaluations=tuple(e for e in events if e.get("event") == "eval" and not math.isnan(number(e, "step"))),
        warnings=tuple(dict.fromkeys(said)),
        before=section(evaluation, "before"),
        after=section(evaluation, "after"),
        check=_object(run_dir / "check.json"),
        samples=tuple(s for s in samples if {"step", "prompt", "completion"} <= set(s)),
        story=_object(run_dir / "story.json"),
    )


def section(data: Data, name: str) -> Data:
    """A nested object, empty where it is absent or null."""
    found = data.get(name)
    return found if isinstance(found, dict) else {}


def number(data: Data, name: str, default: float = math.nan) -> float:
    """A number, `default` where it is absent, null or something else."""
    found = data.get(name)
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else default


def _object(path: Path) -> Data:
    if not path.exists():
        return {}
    try:
        found = store.read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: no readable JSON: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: expected a JSON object")
    return found
