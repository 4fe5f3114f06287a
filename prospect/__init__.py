"""Prospect turns thumbs up and thumbs down into a better language model.

    import prospect

    run = prospect.train(model="my-model", data="thumbs.jsonl", out="runs/first")
    run.evaluate()
    run.report()

Every public name is imported when it is first used, so that `import prospect` costs little.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from prospect.training.config import train_signature

if TYPE_CHECKING:
    from prospect.data.dataset import Dataset, build_dataset
    from prospect.data.options import DataOptions
    from prospect.data.write import write as write_feedback
    from prospect.engine.generate import generate
    from prospect.engine.load import load as load_model
    from prospect.engine.packing import Branches, forward
    from prospect.engine.policy import Policy
    from prospect.errors import ConfigError, DataError, MissingExtra, ModelError, ProspectError, RunError, UserError
    from prospect.feedback.load import Feedback
    from prospect.feedback.load import load as load_feedback
    from prospect.feedback.records import Completion, Pair, Record
    from prospect.losses.reference_point import Statistics
    from prospect.losses.registry import LOSSES, loss, reference_point
    from prospect.run import Run
    from prospect.training.config import TrainConfig, TrainOptions

__version__ = "0.1.0"

__all__ = [
    "LOSSES",
    "Branches",
    "Completion",
    "ConfigError",
    "DataError",
    "DataOptions",
    "Dataset",
    "Feedback",
    "MissingExtra",
    "ModelError",
    "Pair",
    "Policy",
    "ProspectError",
    "Record",
    "Run",
    "RunError",
    "Statistics",
    "TrainConfig",
    "UserError",
    "__version__",
    "build_dataset",
    "forward",
    "generate",
    "load_feedback",
    "load_model",
    "loss",
    "reference_point",
    "train",
    "write_feedback",
]

_HOMES = {
    "LOSSES": "losses.registry:LOSSES",
    "Branches": "engine.packing:Branches",
    "Completion": "feedback.records:Completion",
    "ConfigError": "errors:ConfigError",
    "DataError": "errors:DataError",
    "DataOptions": "data.options:DataOptions",
    "Dataset": "data.dataset:Dataset",
    "Feedback": "feedback.load:Feedback",
    "MissingExtra": "errors:MissingExtra",
    "ModelError": "errors:ModelError",
    "Pair": "feedback.records:Pair",
    "Policy": "engine.policy:Policy",
    "ProspectError": "errors:ProspectError",
    "Record": "feedback.records:Record",
    "Run": "run:Run",
    "RunError": "errors:RunError",
    "Statistics": "losses.reference_point:Statistics",
    "TrainConfig": "training.config:TrainConfig",
    "UserError": "errors:UserError",
    "build_dataset": "data.dataset:build_dataset",
    "forward": "engine.packing:forward",
    "generate": "engine.generate:generate",
    "load_feedback": "feedback.load:load",
    "load_model": "engine.load:load",
    "loss": "losses.registry:loss",
    "reference_point": "losses.registry:reference_point",
    "write_feedback": "data.write:write",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(f"prospect.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)


def train(
    model: str | Path = "", data: Any = None, out: str | Path | None = None, **options: Unpack[TrainOptions]
) -> Run:
    """Align a model with feedback, and return its Run.

    `data` is a path or a list of paths, a list of dicts, a datasets.Dataset or a DataFrame; `out` defaults to a new
    folder under runs/. Every option is one of TrainConfig's fields; `prospect train --help` explains them. Raises
    UserError before anything is written, RunError once the run has started.
    """
    run: Run = importlib.import_module("prospect.run").train(model, data, out, **options)
    return run


vars(train)["__signature__"] = train_signature()  # what help() shows
