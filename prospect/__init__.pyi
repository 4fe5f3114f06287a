"""What type checkers and editors see: prospect.training.signature.stub wrote this file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from prospect.data.write import write as write_feedback
from prospect.errors import (
    ConfigError as ConfigError,
    DataError as DataError,
    MissingExtra as MissingExtra,
    ModelError as ModelError,
    ProspectError as ProspectError,
    RunError as RunError,
    UserError as UserError,
)
from prospect.feedback.load import (
    Feedback as Feedback,
    load as load_feedback,
)
from prospect.feedback.records import (
    Completion as Completion,
    Pair as Pair,
    Record as Record,
)
from prospect.losses.registry import (
    LOSSES as LOSSES,
    loss as loss,
    reference_point as reference_point,
)
from prospect.run import Run as Run
from prospect.training.config import TrainConfig as TrainConfig

__version__: str
_HOMES: dict[str, str]
__all__ = ["Completion", "ConfigError", "DataError", "Feedback", "LOSSES", "MissingExtra", "ModelError", "Pair", "ProspectError", "Record", "Run", "RunError", "TrainConfig", "UserError", "__version__", "load_feedback", "loss", "reference_point", "train", "write_feedback"]

def train(
    model: str | Path = "",
    data: Any = None,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    trust_run: bool = False,
    loss: str = "kto",
    loss_args: Mapping[str, float | str] = {},
    modify: Sequence[str] = (),
    reference: str | None = None,
    reference_point: str | None = None,
    z0_gradient: bool = False,
    weights: Literal["auto", "none"] = "auto",
    format: str = "auto",
    threshold: str | None = None,
    eval_data: str | Sequence[str] | None = None,
    eval_fraction: float = 0.0,
    chat_template: str | None = None,
    special_tokens: Literal["text", "token"] = "text",
    max_length: int | None = None,
    over_long: Literal["drop", "cut_prompt", "cut_completion", "error"] = "drop",
    lora: str | None = None,
    precision: Literal["auto", "bf16", "fp32", "fp64"] = "auto",
    device: str = "auto",
    engine: Literal["auto", "tree", "padded"] = "auto",
    kernels: Literal["auto", "torch", "fused"] = "auto",
    activation_checkpointing: Literal["auto", "on", "off"] = "auto",
    token_budget: int | None = None,
    batch_size: int = 32,
    epochs: int = 1,
    max_steps: int | None = None,
    group: Literal["auto", "row", "prompt"] = "auto",
    seed: int = 0,
    partner_seed: int = 0,
    learning_rate: float | None = None,
    optimizer: Literal["adamw", "rmsprop"] = "adamw",
    adam_beta1: float = 0.9,
    adam_beta2: float = 0.999,
    weight_decay: float = 0.0,
    warmup: float = 0.1,
    decay: Literal["constant", "linear", "cosine"] = "constant",
    clip: float = 10.0,
    eval_every: int = 0,
    keep_best: bool = False,
    save_every: int = 0,
    save_dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    keep: int = 2,
    samples: int = 3,
    sample_tokens: int = 128,
    track: Sequence[str] = (),
    cache: str | None = None,
) -> Run: ...
