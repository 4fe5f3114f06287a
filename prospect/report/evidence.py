"""What a run folder holds, as plain data, and what its figures show.

    run folder --read--> RunFolder --Evidence--> figures, and what each of them means

Each question is decided here once. The verdict and all advice read an Evidence and decide nothing again, so that they
cannot contradict each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from scipy.special import stdtrit

from prospect.data import store
from prospect.errors import ConfigError
from prospect.evaluate.statistics import FEW, Interval
from prospect.training.config import usual_rate

Data = dict[str, Any]
Effect = Literal["unmeasured", "unchanged", "few", "reversed", "unclear", "free", "learnt"]
"""What held-out feedback shows, the first that holds: nothing was measured; the model has hardly changed; too few
prompts to tell; it prefers what people dislike; the reward is not shown to rank them, or by no more than before; it is
not shown to beat what ranks them for free; it learnt what people like."""

LESS_LIKELY = 0.2
"""Nats per token by which liked answers may become less likely before it is worth a word."""
HARDLY_CHANGED = 0.1
"""Nats by which the log-prob of an answer moves, on average, in a model that has hardly changed: a tenth of its
probability."""
UNKNOWN = Interval(math.nan, math.nan, math.nan)
BASELINES: Mapping[str, tuple[str, str]] = {
    "length": ("length (longer first)", "length (shorter first)"),
    "reference_logp": (
        "the start model's own likelihood (likely first)",
        "the start model's own likelihood (unlikely first)",
    ),
}
"""In words, where its AUC is at least one half and where it is below."""


# ---- the folder ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunFolder:
    """The files' contents; an absent file is an empty dict or tuple.

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
        """Whether any step has this figure."""
        return any(not math.isnan(value) for value in self.series(name))

    def heldout(self, name: str) -> tuple[list[float], list[float]]:
        """(steps, values) of a figure that was measured on held-out feedback while training went on."""
        points = [(number(e, "step"), number(e, name)) for e in self.evaluations if not math.isnan(number(e, name))]
        return [step for step, _ in points], [value for _, value in points]


def read(run_dir: Path) -> RunFolder:
    """Read a run folder. Nothing is required but the folder itself. Raises ConfigError where it does not exist or where
    one of its files is no JSON.

    Damaged lines are left out, as --resume does, and counted in a warning.
    """
    if not run_dir.is_dir():
        raise ConfigError(
            f"{run_dir} is no run folder: expected what prospect train wrote, with config.json and metrics.jsonl"
        )
    events, damaged = store.json_lines(run_dir / "metrics.jsonl")
    samples, damaged_samples = store.json_lines(run_dir / "samples.jsonl")
    evaluation = _object(run_dir / "evaluation.json")
    warnings = [str(e["message"]) for e in events if e.get("event") == "warning" and e.get("message")]
    for name, count in (("metrics.jsonl", damaged), ("samples.jsonl", damaged_samples)):
        if count:
            warnings.append(f"Damaged lines of {name}, which are left out: {count}.")
    return RunFolder(
        path=run_dir,
        config=_object(run_dir / "config.json"),
        steps=tuple(e for e in events if e.get("event") == "step" and not math.isnan(number(e, "step"))),
        evaluations=tuple(e for e in events if e.get("event") == "eval" and not math.isnan(number(e, "step"))),
        warnings=tuple(dict.fromkeys(warnings)),
        before=section(evaluation, "before"),
        after=section(evaluation, "after"),
        check=_object(run_dir / "check.json"),
        samples=tuple(s for s in samples if {"step", "prompt", "completion"} <= set(s)),
        story=_object(run_dir / "story.json"),
    )


def _object(path: Path) -> Data:
    if not path.exists():
        return {}
    try:
        value = store.read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: no readable JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a JSON object")
    return value


def section(data: Data, name: str) -> Data:
    """A nested object, empty where it is absent or null."""
    value = data.get(name)
    return value if isinstance(value, dict) else {}


def number(data: Data, name: str, default: float = math.nan) -> float:
    """A number, `default` where it is absent, null or something else."""
    value = data.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else default


def items(data: Data, name: str) -> list[Any]:
    """A nested list, empty where it is absent, null or something else."""
    value = data.get(name)
    return value if isinstance(value, list) else []


def objects(data: Data, name: str, *figures: str) -> list[Data]:
    """The objects of a nested list that have all these figures."""
    return [
        item
        for item in items(data, name)
        if isinstance(item, dict) and all(math.isfinite(number(item, figure)) for figure in figures)
    ]


def interval(data: Data, name: str) -> Interval:
    """A nested number with its interval, of NaN where it is absent."""
    return Interval(*(number(section(data, name), end) for end in ("value", "low", "high")))


# ---- what the figures show -------------------------------------------------------------------------------------------


class Evidence:
    """A run's figures and what they show. What is not known is NaN, so that no comparison with it holds."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        before, after, own = run.before, run.after, run.own_reference
        arguments = section(section(run.config, "loss"), "arguments")
        self.beta = number(arguments, "beta", number(after, "beta"))

        # Held-out feedback, after training.
        self.answers, self.prompts = (number(after, name) for name in ("n", "prompts"))
        self.groups = number(after, "groups", self.prompts)  # independent of each other
        self.notes = [str(note) for note in items(after, "notes")]
        self.auc, self.margin, self.accuracy, self.nll, self.slope, self.gap = (
            interval(after, name)
            for name in ("auc", "margin", "accuracy", "nll", "calibration_slope", "calibration_gap")
        )
        self.length, self.likelihood = (interval(section(after, "baselines"), name) for name in BASELINES)
        # The baseline by which the AUC leads least, and that lead: both from the same resamples.
        leads = section(after, "auc_difference")
        self.hardest = min(leads, key=lambda name: number(section(leads, name), "value", math.inf), default="")
        self.lead = interval(leads, self.hardest)
        self.length_lead, self.likelihood_lead = (interval(leads, name) for name in BASELINES)
        # How many nats a token of liked answers costs more than before; without an interval beside another reference.
        self.nll_change = Interval(self.nll.value - interval(before, "nll").value, math.nan, math.nan)
        if own and after.get("nll_change"):
            self.nll_change = interval(after, "nll_change")
        # Mean |log pi(y|x) - log pi_start(y|x)| of an answer in nats; unknown beside another reference.
        self.change = interval(after, "change") if own else UNKNOWN

        # Sampled answers: how many differ from those before training, of how many.
        sampled = [answers for answers in run.answers.values() if len(answers) > 1 and 0 in answers]
        self.changed, self.sampled = sum(answers[0] != answers[max(answers)] for answers in sampled), len(sampled)

        # Training: "up" desirable answers, "down" undesirable ones.
        self.reward_up, self.reward_down, self.training_accuracy, self.saturated, self.z0_raw = (
            ends(run.series(name))[1]
            for name in ("reward_desirable", "reward_undesirable", "accuracy", "saturated", "z0_raw")
        )
        self.loss_start, self.loss_end = ends(run.series("loss"))
        self.rate = max(_finite(run.series("lr")), default=math.nan)
        self.clip = number(run.options, "clip")
        self.clipped = _mean([norm > self.clip for norm in _finite(run.series("grad_norm"))])
        at_rest = _mean([abs(z0) <= 1e-9 for z0 in _finite(run.series("z0"))])  # clamped at 0
        self.z0_at_rest = at_rest if run.has("z0_raw") else math.nan
        up, down = (number(arguments, f"{side}desirable_weight") for side in ("", "un"))
        self.imbalance = up / down if min(up, down) > 0 else math.nan
        # The best held-out AUC on the way, its step, and the last one.
        self.best_auc, self.best_step, self.last_auc = math.nan, math.nan, math.nan
        steps, course = run.heldout("auc")
        if len(course) >= 3:
            self.best_auc, self.best_step, self.last_auc = *max(zip(course, steps, strict=True)), course[-1]
        # Whether --keep-best took the model by the very answers that measure it.
        self.selection = bool(run.options.get("keep_best")) and len(run.evaluations) > 2
        # The usual learning rates next to the highest of the run, as `prospect recommend` proposes them, or a third and
        # three times where none are known; NaN where none is worth trying.
        parameters = number(section(run.config, "model"), "parameters")
        usual = usual_rate(
            run.loss, None if math.isnan(parameters) else parameters, adapter=bool(run.options.get("lora"))
        )
        lower, higher = (usual.below(self.rate), usual.above(self.rate)) if usual else (self.rate / 3, self.rate * 3)
        self.lower_rate, self.higher_rate = (math.nan if rate is None else rate for rate in (lower, higher))

        # What they show.
        self.harm = self.nll_change.value > LESS_LIKELY and not self.nll_change.low <= 0  # to liked answers
        self.both_fall = self.reward_up < -0.1 and self.reward_down < -0.1
        self.still = self._still()
        self.effect = self._effect()
        # The loss stays where it was and training answers are not ranked either. A run that has blown up does not learn
        # either, but not for lack of steps.
        unranked = self.training_accuracy < 0.6 and not self.saturated > 0.2
        self.stuck = len(run.steps) >= 4 and unranked and self.loss_start > 0 and self.loss_end > 0.97 * self.loss_start
        # The model has moved away from good answers: liked held-out ones are much less likely, or training ones less
        # likely while nothing shows that the model learnt from them.
        unlearnt = self.both_fall and run.has("z0") and self.effect != "learnt"
        self.too_far = not self.still and (self.harm or unlearnt)
        # The model has hardly been trained.
        idle = self.stuck and self.effect not in ("learnt", "free", "reversed") and not self.both_fall and not self.harm
        self.too_little = self.still or idle
        # Length alone ranks the held-out answers by a margin worth naming.
        sure = self.length.low > 0.5 or self.length.high < 0.5
        self.length_tells = sure and abs(self.length.value - 0.5) >= 0.1

    def _still(self) -> bool:
        """Whether the model has hardly changed: its sampled answers are the same, or log-probs have moved by no more
        than HARDLY_CHANGED or three times what rounding moves them."""
        if self.sampled and not self.changed:
            return True
        if math.isfinite(self.change.value):
            rounding = number(section(self.run.before, "change"), "value", 0.0)
            return self.change.value <= max(HARDLY_CHANGED, 3 * rounding)
        moves = [abs(value) / self.beta for value in _finite((self.reward_up, self.reward_down))]
        return not self.sampled and self.run.own_reference and bool(moves) and max(moves) <= HARDLY_CHANGED

    def _effect(self) -> Effect:
        if math.isnan(self.auc.value):
            return "unmeasured"
        if self.still:
            return "unchanged"
        if not self.groups >= FEW:
            return "few"
        if self.auc.high < 0.5:
            return "reversed"
        # Beside its own start model the reward of the untrained policy is rounding, beside another it is something.
        auc_before = number(section(self.run.before, "auc"), "high", 0.5)
        margin_before = number(section(self.run.before, "margin"), "high", 0.0)
        if not self.auc.low > max(0.5, auc_before) or not self.margin.low > max(0.0, margin_before):
            return "unclear"
        return "learnt" if self.lead.low > 0 else "free"

    @property
    def hardest_words(self) -> str:
        """The hardest baseline with the direction in which it ranks better."""
        alone = interval(section(self.run.after, "baselines"), self.hardest).value
        words = baseline_words(self.hardest, alone)
        return words if self.run.own_reference else words.replace("start model", "reference")


def baseline_words(name: str, auc: float) -> str:
    """A baseline with the direction in which it ranks better."""
    return BASELINES.get(name, (name, name))[auc < 0.5]


def with_interval(value: Interval, form: str = ".3f") -> str:
    """ "0.812 (95 % interval 0.741 to 0.876)"."""
    if math.isnan(value.low):
        return format(value.value, form)
    return f"{value.value:{form}} (95 % interval {value.low:{form}} to {value.high:{form}})"


# ---- ends of a series ------------------------------------------------------------------------------------------------


def ends(y: Sequence[float]) -> tuple[float, float]:
    """Averages of the beginning and the end of a series (see `_ends`); NaN where it is empty."""
    first, last = _ends(y)
    return _mean(first), _mean(last)


def rise(y: Sequence[float]) -> Interval:
    """By how much the end of a series lies above its beginning, with the 95 % interval of the difference of two means
    (Welch's t); its ends are NaN below two values at either end, which have no noise to measure."""
    first, last = _ends(y)
    gain, k = _mean(last) - _mean(first), len(first)
    if k < 2:
        return Interval(gain, math.nan, math.nan)
    a, b = (math.fsum((v - _mean(side)) ** 2 for v in side) / (k - 1) / k for side in (first, last))
    freedom = (k - 1) * (a + b) ** 2 / (a * a + b * b) if a + b > 0 else k - 1
    half = math.sqrt(a + b) * float(stdtrit(freedom, 0.975))
    return Interval(gain, gain - half, gain + half)


def _ends(y: Sequence[float]) -> tuple[list[float], list[float]]:
    """The first and the last tenth of a series, at least three values each, and no value in both."""
    values = _finite(y)
    k = min(max(1, len(values) // 2), max(3, round(0.1 * len(values))))
    return values[:k], values[-k:]


def _finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan
