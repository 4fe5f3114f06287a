"""TrainConfig: the only source of train's flags, YAML keys, defaults and help. Defaults follow the paper (section
4)."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from prospect.data import store
from prospect.errors import ConfigError, brief, nearest
from prospect.training import names

TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Turn feedback into a better model."""

    model: str = ""
    """The start model: a transformers folder, a PEFT adapter folder, or a Hub name."""
    data: str | tuple[str, ...] = ""
    """The feedback: files, patterns, folders, or a Hub name."""
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
    threshold: str | None = None
    """Turns scores into thumbs: mean, median, or a number (score >= threshold is desirable)."""
    eval_data: str | tuple[str, ...] | None = None
    """Held-out feedback, measured before and after."""
    eval_fraction: float = 0.0
    """Without eval_data: the fraction of prompts held out of training."""
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
    computation."""
    seed: int = 0
    """Order of the data and start of new adapters."""
    partner_seed: int = 0
    """Who is whose mismatched partner. Kept apart from seed, so that the reference table serves every seed."""

    learning_rate: float | None = None
    """Default: the loss's own (kto 5e-6, dpo 5e-7, sft 1e-5, ...); ten times that for LoRA."""
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
        _require(self.batch_size >= 1, "batch_size", "at least 1", self.batch_size)
        _require(self.epochs >= 1, "epochs", "at least 1", self.epochs)
        _require(self.max_steps is None or self.max_steps >= 1, "max_steps", "at least 1", self.max_steps)
        _require(self.max_length is None or self.max_length >= 2, "max_length", "at least 2", self.max_length)
        _require(self.token_budget is None or self.token_budget >= 1, "token_budget", "at least 1", self.token_budget)
        _require(0 <= self.eval_fraction < 1, "eval_fraction", "from 0 to below 1", self.eval_fraction)
        _require(
            self.learning_rate is None or 0 < self.learning_rate < 1,
            "learning_rate",
            "between 0 and 1",
            self.learning_rate,
        )
        _require(0 <= self.adam_beta1 < 1, "adam_beta1", "from 0 to below 1", self.adam_beta1)
        _require(0 <= self.adam_beta2 < 1, "adam_beta2", "from 0 to below 1", self.adam_beta2)
        for name in ("weight_decay", "warmup", "eval_every", "save_every", "samples"):
            _require(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        for name in ("clip", "keep", "sample_tokens"):
            _require(getattr(self, name) > 0, name, "above 0", getattr(self, name))
        for name in self.track:
            if name not in TRACKERS:
                raise ConfigError(
                    f'there is no tracker "{name}".{nearest(name, TRACKERS)} Known: {", ".join(TRACKERS)}'
                )


def _require(holds: bool, name: str, expected: str, value: object) -> None:
    if not holds:
        raise ConfigError(f"--{name.replace('_', '-')} must be {expected}, not {brief(value)}")


def from_dict(values: dict[str, Any], where: str = "the configuration") -> TrainConfig:
    """A config from plain data. Raises ConfigError on unknown keys, naming the nearest, and on wrong values."""
    known = {f.name: f for f in fields(TrainConfig)}
    values = dict(values)
    for key in values:
        if key not in known:
            raise ConfigError(f'{where} has the unknown key "{key}".{_hint(key, known)}')
        if isinstance(values[key], str) and "\0" in values[key]:
            raise ConfigError(f"{where}: {key} holds a null character, which no name and no path can")
        values[key] = _as_declared(values[key], str(known[key].type))
        _check_type(key, values[key], str(known[key].type), where)
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return TrainConfig(**values)


def _hint(key: str, known: Iterable[str]) -> str:
    """What an unknown key was meant to be, as far as it can be guessed."""
    name = key.replace("-", "_")
    same, advice = names.same_flag(name), names.advice(name)
    if same is not None and not same.startswith("--loss."):
        return f' Did you mean "{same.removeprefix("--").replace("-", "_")}"?'
    return nearest(key, known) if advice is None else f" {advice}. Keys are written as learning_rate and loss_args"


def _as_declared(value: Any, declared: str) -> Any:
    """What YAML makes of a value, turned into what was meant: to YAML 1.1, 5e-6 is text and a threshold of 0.5 none."""
    if isinstance(value, dict):
        return {name: _as_declared(item, "float") for name, item in value.items()}
    if isinstance(value, str) and declared.startswith("float"):
        with suppress(ValueError):
            return float(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and declared == "str | None":
        with suppress(ValueError):  # of too many digits for Python to write
            return str(value)
    return value


def _check_type(key: str, value: object, declared: str, where: str) -> None:
    """Plain data has no flag parser in front of it: check the few types that fields have."""
    kinds: list[type] = [kind for name, kind in (("str", str), ("int", int), ("float", float)) if name in declared]
    if declared.startswith("dict"):
        good, expected = isinstance(value, dict), "names with their values, such as {beta: 0.05}"
    elif "Literal" in declared:
        choices = [part.strip(" \"'") for part in declared[declared.index("[") + 1 : declared.index("]")].split(",")]
        good = value in choices
        expected = "one of " + ", ".join(choices)
    elif "tuple" in declared:
        one = declared.startswith("str |")
        good = isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)
        good, expected = (
            good or (one and isinstance(value, str)),
            "a name or a list of names" if one else "a list of names",
        )
    elif declared.startswith("bool"):
        good, expected = isinstance(value, bool), "true or false"
    else:
        good = isinstance(value, tuple(kinds)) or (float in kinds and isinstance(value, int))
        good, expected = good and not isinstance(value, bool), " or ".join(k.__name__ for k in kinds)
    if not good and not (value is None and "None" in declared):
        raise ConfigError(f"{where}: {key} must be {expected}, not {brief(value)}")


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
