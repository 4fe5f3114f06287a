"""Prospect turns thumbs up and thumbs down into a better language model.

    import prospect

    run = prospect.train(model="my-model", data="thumbs.jsonl", out="runs/first")
    run.evaluate()
    run.report()

Every public name is imported when it is first used, so that `import prospect` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

__all__ = [
    "LOSSES",
    "Completion",
    "ConfigError",
    "DataError",
    "Feedback",
    "MissingExtra",
    "ModelError",
    "Pair",
    "ProspectError",
    "Record",
    "Run",
    "RunError",
    "TrainConfig",
    "UserError",
    "__version__",
    "load_feedback",
    "loss",
    "reference_point",
    "train",
    "write_feedback",
]

_HOMES = {
    "LOSSES": "prospect.losses.registry:LOSSES",
    "Completion": "prospect.feedback.records:Completion",
    "ConfigError": "prospect.errors:ConfigError",
    "DataError": "prospect.errors:DataError",
    "Feedback": "prospect.feedback.load:Feedback",
    "MissingExtra": "prospect.errors:MissingExtra",
    "ModelError": "prospect.errors:ModelError",
    "Pair": "prospect.feedback.records:Pair",
    "ProspectError": "prospect.errors:ProspectError",
    "Record": "prospect.feedback.records:Record",
    "Run": "prospect.run:Run",
    "RunError": "prospect.errors:RunError",
    "TrainConfig": "prospect.training.config:TrainConfig",
    "UserError": "prospect.errors:UserError",
    "load_feedback": "prospect.feedback.load:load",
    "loss": "prospect.losses.registry:loss",
    "reference_point": "prospect.losses.registry:reference_point",
    "write_feedback": "prospect.data.write:write",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)


def train(model: Any = "", data: Any = None, out: Any = None, **options: Any) -> Any:
    """Align a model with feedback, and return its Run.

    `data` is a path or a list of paths, a list of dicts, a datasets.Dataset or a DataFrame; `out` defaults to a new
    folder under runs/. Every option is one of TrainConfig's fields; `prospect train --help` explains them. Raises
    UserError before anything is written, RunError once the run has started.
    """
    return importlib.import_module("prospect.run").train(model, data, out, **options)


train.__signature__ = importlib.import_module("prospect.training.signature").signature()  # type: ignore[attr-defined]
