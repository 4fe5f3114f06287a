"""The options of a run. TrainConfig is the only source of train's flags, YAML keys, defaults and help; defaults follow
the paper (section 4). Beside it: what other tools call these options, and which learning rates are usual."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any, Literal, TypedDict

from prospect.data import store
from prospect.errors import ConfigError, brief, nearest

TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Turn feedback into a better model."""

    model: str = ""
    """The start model: a transformers folder, a PEFT adapter folder, or a Hub name."""
    data: str | tuple[str, ...] = ""
    """The feedback: files, patterns, folders or Hub names, each with a weight if it ends like "a.jsonl:0.5"."""
    out: str = ""
    """The run folder to create. An existing one is never overwritten."""
    resume: bool = False
    """Go on with the run in `out`, to the same bits as if it had never stopped."""
    trust_run: bool = False
    """Let --resume and --config run the Python file that a run's config.json names: the run is yours, or you have read
    it."""

    loss: str = "kto"
    """A name listed by `prospect losses`, a mixture such as dpo:0.8,sft:1, or your own my_losses.py:my_loss."""
    loss_args: dict[str, float | str] = field(default_factory=dict)
    """The loss's own arguments; on the command line --loss.NAME VALUE, such as --loss.beta 0.05."""
    modify: tuple[str, ...] = ()
    """What wraps the loss: wpo, tr, humanline, gate."""
    reference: str | None = None
    """Another reference model than the start model."""
    reference_point: str | None = None
    """The estimator of z0, as listed by `prospect losses`, or your own my_points.py:my_point. Default: the
    loss's own."""
    z0_gradient: bool = False
    """Let the gradient flow through z0 as well. The paper does not, and its theorem 4.3 fails if one does."""
    weights: Literal["auto", "none"] = "auto"
    """auto balances the two classes by the loss's class weights, the majority side staying at 1; none leaves them at
    1."""

    format: str = "auto"
    """The data's layout; auto detects it."""
    map: str = ""
    """NEW=COLUMN,...: read columns of the data under the names that a layout has, such as label=vote,prompt=question.
    YAML may have a mapping."""
    labels: str = ""
    """WORD=up|down|none,...: what the words of the data's thumbs mean, such as like=up,dislike=down. YAML may
    have a mapping."""
    threshold: str | None = None
    """Turns scores into thumbs: mean, median, or a number (score >= threshold is desirable)."""
    eval_data: str | tuple[str, ...] | None = None
    """Held-out feedback, measured before and after."""
    eval_fraction: float = 0.0
    """Without eval_data: the fraction of prompts held out of training."""
    eval_since: str | None = None
    """Without eval_data: hold out what was judged since this date (each answer's `at`), such as 2026-01-31."""
    max_weight_per_rater: float | None = None
    """The most of the training weight that one rater (each answer's `by`) has, such as 0.1: the rows of heavier ones
    count less."""
    chat_template: str | None = None
    """A Jinja file, or "plain", for a model without a chat template."""
    special_tokens: Literal["text", "token"] = "text"
    """What a control token is that stands inside a message: text, so that nobody's words open or end a turn, or the
    token."""
    max_length: int | None = None
    """Longest prompt plus completion in tokens. Default: the model's context."""
    over_long: Literal["drop", "cut_prompt", "cut_completion", "error"] = "drop"
    """What happens to what is longer."""

    lora: str | None = None
    """Train a LoRA adapter: r=16, optionally alpha=32 and targets=q_proj+v_proj, separated by commas."""
    precision: Literal["auto", "bf16", "fp32", "fp64"] = "auto"
    """auto is bf16 where the hardware has it. Trainable weights are float32 in either case (fp64: float64)."""
    device: str = "auto"
    """auto, cpu or cuda."""
    engine: Literal["auto", "tree", "padded"] = "auto"
    """auto packs trees without padding where three checks prove it exact for the model, else it pads."""
    kernels: Literal["auto", "torch", "fused"] = "auto"
    """torch needs nothing beside it; fused takes liger-kernel's norms and activations and cut-cross-entropy's head, on
    CUDA. auto is torch, until somebody has measured the others."""
    activation_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Recompute activations in backward: less memory, a third more work. auto: on CUDA when the model is large for
    it."""
    token_budget: int | None = None
    """Most tokens per micro-batch. Default: chosen at the start and written to config.json. Never changes the
    result."""

    batch_size: int = 32
    """Rows (completions, or pairs) per optimizer step. There is no accumulation to set."""
    epochs: int = 1
    """Passes over the data."""
    max_steps: int | None = None
    """Stop after this many optimizer steps."""
    group: Literal["auto", "row", "prompt"] = "auto"
    """row shuffles rows as the paper does; prompt keeps a prompt's rows in one step, so that they share its
    computation. Losses on groups keep every group whole."""
    equal_scores: Literal["keep", "drop"] = "keep"
    """For losses on groups: what becomes of groups whose answers all have the same score. drop leaves them out of the
    steps and of every mean."""
    seed: int = 0
    """Order of the data and start of new adapters."""
    partner_seed: int = 0
    """Who is whose mismatched partner. Kept apart from seed, so that the reference table serves every seed."""

    learning_rate: float | None = None
    """Default: the loss's own (kto 5e-6, dpo 5e-7, sft 1e-5, ...); ten times that for LoRA."""
    value_learning_rate: float | None = None
    """That of a learned value, where the loss has one. Default: the loss's own, else --learning-rate."""
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    """rmsprop is what the paper's experiments used."""
    adam_beta1: float = 0.9
    """AdamW's decay of the mean gradient."""
    adam_beta2: float = 0.999
    """AdamW's decay of the squared gradient."""
    weight_decay: float = 0.0
    """Weight decay of matrices; norms and biases have none. Decoupled in adamw, part of the gradient in rmsprop."""
    warmup: float = 0.1
    """Steps of linear warm-up: a fraction of all steps below 1, else a number of steps."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """The learning rate after warm-up."""
    clip: float = 10.0
    """Largest gradient norm; a larger gradient is scaled down to it."""

    eval_every: int = 0
    """Measure the held-out feedback every so many steps (0: before and after only)."""
    keep_best: bool = False
    """Save the model of the evaluation with the best held-out AUC instead of the last."""
    save_every: int = 0
    """Checkpoint every so many steps (0: once per epoch)."""
    save_dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """What the trained model is saved in; auto is what the start model is stored in. Checkpoints keep every bit."""
    keep: int = 2
    """Checkpoints to keep."""
    samples: int = 3
    """Held-out prompts (else training prompts) answered before, during and after for the report."""
    sample_tokens: int = 128
    """Longest such answer in tokens."""
    track: tuple[str, ...] = ()
    """Also log to tensorboard, wandb, trackio or mlflow."""
    cache: str | None = None
    """Where reference log-probs are kept. Default: PROSPECT_CACHE, else prospect in the user's cache folder."""

    def __post_init__(self) -> None:
        for names, holds, expected in RANGES:
            for name in names.split():
                value = getattr(self, name)
                if value is not None and not holds(value):
                    raise ConfigError(f"--{name.replace('_', '-')} must be {expected}, not {brief(value)}")
        for name in self.track:
            if name not in TRACKERS:
                raise ConfigError(
                    f'there is no tracker "{name}".{nearest(name, TRACKERS)} Known: {", ".join(TRACKERS)}'
                )


RANGES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("batch_size epochs max_steps token_budget", lambda x: x >= 1, "at least 1"),
    ("max_length", lambda x: x >= 2, "at least 2"),
    ("eval_fraction", lambda x: 0 <= x < 1, "from 0 to below 1"),
    ("max_weight_per_rater", lambda x: 0 < x <= 1, "above 0, and at most 1"),
    ("learning_rate value_learning_rate", lambda x: 0 < x < 1, "between 0 and 1"),
    ("adam_beta1 adam_beta2", lambda x: 0 <= x < 1, "from 0 to below 1"),
    ("weight_decay warmup eval_every save_every samples", lambda x: x >= 0, "0 or more"),
    ("clip keep sample_tokens", lambda x: x > 0, "above 0"),
)
"""Options, the values that they can have, and these in words."""


class TrainOptions(TypedDict, total=False):
    """What `prospect.train` takes by name: TrainConfig's fields but model, data and out, for type checkers."""

    resume: bool
    trust_run: bool
    loss: str
    loss_args: Mapping[str, float | str]
    modify: Sequence[str]
    reference: str | None
    reference_point: str | None
    z0_gradient: bool
    weights: Literal["auto", "none"]
    format: str
    map: str
    labels: str
    threshold: str | None
    eval_data: str | Sequence[str] | None
    eval_fraction: float
    eval_since: str | None
    max_weight_per_rater: float | None
    chat_template: str | None
    special_tokens: Literal["text", "token"]
    max_length: int | None
    over_long: Literal["drop", "cut_prompt", "cut_completion", "error"]
    lora: str | None
    precision: Literal["auto", "bf16", "fp32", "fp64"]
    device: str
    engine: Literal["auto", "tree", "padded"]
    kernels: Literal["auto", "torch", "fused"]
    activation_checkpointing: Literal["auto", "on", "off"]
    token_budget: int | None
    batch_size: int
    epochs: int
    max_steps: int | None
    group: Literal["auto", "row", "prompt"]
    equal_scores: Literal["keep", "drop"]
    seed: int
    partner_seed: int
    learning_rate: float | None
    value_learning_rate: float | None
    optimizer: Literal["adamw", "rmsprop"]
    adam_beta1: float
    adam_beta2: float
    weight_decay: float
    warmup: float
    decay: Literal["constant", "linear", "cosine"]
    clip: float
    eval_every: int
    keep_best: bool
    save_every: int
    save_dtype: Literal["auto", "fp32", "bf16", "fp16"]
    keep: int
    samples: int
    sample_tokens: int
    track: Sequence[str]
    cache: str | None


def train_signature() -> Signature:
    """`prospect.train`'s for `help()`: model, data and out by position, every other field of TrainConfig by name."""
    hints = typing.get_type_hints(TrainConfig)
    first = [
        Parameter("model", Parameter.POSITIONAL_OR_KEYWORD, default="", annotation=str | Path),
        Parameter("data", Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=Any),
        Parameter("out", Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=str | Path | None),
    ]
    rest = [
        Parameter(
            f.name,
            Parameter.KEYWORD_ONLY,
            default=f.default if f.default_factory is MISSING else f.default_factory(),
            annotation=hints[f.name],
        )
        for f in fields(TrainConfig)
        if f.name in TrainOptions.__annotations__
    ]
    return Signature([*first, *rest])


def from_dict(values: dict[str, Any], where: str = "the configuration") -> TrainConfig:
    """A config from plain data. Raises ConfigError on unknown keys, naming the nearest, and on wrong values."""
    kinds = typing.get_type_hints(TrainConfig)
    options = {}
    for key, value in values.items():
        if key not in kinds:
            raise ConfigError(f'{where} has the unknown key "{key}".{_hint(key, kinds)}')
        if isinstance(value, str) and "\0" in value:
            raise ConfigError(f"{where}: {key} holds a null character, which no name and no path can")
        if key in ("map", "labels") and isinstance(value, Mapping):
            from prospect.feedback.columns import as_text

            value = as_text(value, f"{where}: {key}")
        options[key] = _converted(key, value, kinds[key], where)
    return TrainConfig(**options)


def _hint(key: str, known: Iterable[str]) -> str:
    """What an unknown key was meant to be, as far as it can be guessed."""
    name = key.replace("-", "_")
    same, explanation = same_flag(name), advice(name)
    if same is not None and not same.startswith("--loss."):
        return f' Did you mean "{same.removeprefix("--").replace("-", "_")}"?'
    if explanation is None:
        return nearest(key, known)
    return f" {explanation}. Keys are written as learning_rate and loss_args"


def _converted(key: str, value: Any, kind: Any, where: str) -> Any:
    """A value of plain data as its field's type, or ConfigError. YAML 1.1 reads 5e-6 as text and a threshold of 0.5 as
    a number."""
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if value is None and type(None) in kinds:
        return None
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        good, expected = value in choices, f"one of {', '.join(choices)}"
    elif typing.get_origin(kind) is dict:
        if isinstance(value, dict):
            value = {name: _number(item) for name, item in value.items()}
        good, expected = isinstance(value, dict), "names with their values, such as {beta: 0.05}"
    elif tuple[str, ...] in kinds:
        several = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
        good = several or (str in kinds and isinstance(value, str))
        expected = "a name or a list of names" if str in kinds else "a list of names"
        value = tuple(value) if several else value
    elif kind is bool:
        good, expected = isinstance(value, bool), "true or false"
    else:
        plain = [each for each in (str, int, float) if each in kinds]
        if float in plain:
            value = _number(value)
        elif kinds == (str, type(None)) and isinstance(value, int | float) and not isinstance(value, bool):
            with suppress(ValueError):  # of too many digits for Python to write
                value = str(value)
        good = isinstance(value, (*plain, int) if float in plain else tuple(plain)) and not isinstance(value, bool)
        expected = " or ".join(each.__name__ for each in plain)
    if not good:
        raise ConfigError(f"{where}: {key} must be {expected}, not {brief(value)}")
    return value


def _number(value: Any) -> Any:
    """Text that is a number as that number."""
    if isinstance(value, str):
        with suppress(ValueError):
            return float(value)
    return value


def load_options(path: str | Path) -> tuple[dict[str, Any], bool]:
    """The keys and values of a YAML or JSON file, for `from_dict`, of a run's config.json those it was started with;
    and whether the file is a run's, which may be somebody else's and so vouches for no code.

    Raises ConfigError where it is no mapping of names.
    """
    import yaml

    parse = store.parse_json if Path(path).suffix == ".json" else yaml.safe_load
    try:
        values = parse(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path}: expected a mapping of option names to values")
    nested = isinstance(values.get("config"), dict) and isinstance(values.get("model"), dict)
    if not nested and Path(path).name != "config.json":
        return values, False
    written = values["config"] if nested else values
    return {key: value for key, value in written.items() if key not in ("resume", "trust_run")}, True


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Plain data, as written to config.json."""
    return asdict(config)


# ---- what other tools call it ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OtherName:
    """A row of other_names.md, the tables of docs/coming-from-trl.md: `names` that other tools have, `ours` and a
    `remark`. `same`: each name means exactly what its flag in `ours` means (the first the first, or all the only one),
    with the same values, and is accepted."""

    names: tuple[str, ...]
    ours: str
    remark: str
    same: bool


@cache
def other_names() -> dict[str, list[OtherName]]:
    """The rows under each heading of other_names.md."""
    tables: dict[str, list[OtherName]] = {}
    for line in Path(__file__).with_name("other_names.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            rows = tables.setdefault(line.removeprefix("## "), [])
        elif line.startswith("| `"):
            names, ours, remark = (cell.strip() for cell in line.strip("|").split("|"))
            same = remark.startswith(ACCEPTED)
            remark = remark.removeprefix(ACCEPTED).removeprefix("; ") if same else remark
            rows.append(OtherName(tuple(re.findall("`(.+?)`", names)), ours, remark, same))
    return tables


ACCEPTED = "accepted under this name"


def _row(name: str) -> OtherName | None:
    return next((row for rows in other_names().values() for row in rows if name in row.names), None)


def same_flag(name: str) -> str | None:
    """The flag that means exactly what others call `name`, None where there is none."""
    row = _row(name)
    if row is None or not row.same:
        return None
    flags = re.findall(r"`(--[\w.-]+)`", row.ours)
    return str(flags[row.names.index(name) if len(flags) > 1 else 0])


def advice(name: str) -> str | None:
    """What to set instead of `name`, or why there is nothing to set; None for a name that nobody has."""
    row = _row(name)
    if row is None:
        return None
    remark = row.remark.replace("`", "")
    ours = row.ours.replace("`", "").replace("--loss.NAME", f"--loss.{name.replace('_', '-')}")
    if ours.startswith("--"):
        return f"Prospect has {ours}" + (f": {remark}" if remark else "")
    return f"{'There is nothing to set' if ours == 'nothing to set' else 'There is no such option'}: {remark}"


# ---- usual learning rates --------------------------------------------------------------------------------------------

LORA_RATE = 10.0
"""LoRA's learning rate over that of whole models: its matrices start at zero and move a small part of the model."""
TINY = 1e7
"""Parameters below which a model bears, and needs, large steps. Our judgement: no paper covers this size."""
TINY_RATE = 40.0
"""The learning rate of a model below TINY over that of the billions that the papers train."""
DOWN, UP = 5.0, 4.0
"""How far below and above the usual rate it is worth trying."""


@dataclass(frozen=True, slots=True)
class UsualRate:
    """A learning rate to start with and the ends of what is worth trying around it."""

    low: float
    start: float
    high: float

    def below(self, rate: float) -> float | None:
        """Where to go down from `rate`: the start, or its low end, at most half of `rate`; None where neither is."""
        return next((usual for usual in (self.start, self.low) if usual <= rate / 2), None)

    def above(self, rate: float) -> float | None:
        """Where to go up from `rate`: the start, or its high end, at least twice `rate`; None where neither is."""
        return next((usual for usual in (self.start, self.high) if usual >= rate * 2), None)


def usual_rate(loss: str, parameters: float | None, *, adapter: bool) -> UsualRate | None:
    """By the loss's own rate (LOSSES), the size of the model (None: not known) and whether an adapter is trained; None
    for mixtures and own losses, which have no published rate."""
    from prospect.losses.registry import LOSSES

    if loss not in LOSSES:
        return None
    tiny = parameters is not None and parameters < TINY and not adapter
    start = LOSSES[loss].learning_rate * (LORA_RATE if adapter else TINY_RATE if tiny else 1.0)
    return UsualRate(start / DOWN, start, start * UP)
