"""Prospect turns thumbs up and thumbs down into a better language model.

    import prospect

    run = prospect.train(model="my-model", data="thumbs.jsonl", out="runs/first")
    run.evaluate()
    run.report()

Every public name is imported when it is first used, so that `import prospect` costs nothing.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prospect.errors import (
        ConfigError,
        DataError,
        MissingExtra,
        ModelError,
        ProspectError,
        RunError,
        UserError,
    )
    from prospect.feedback.formats import Feedback
    from prospect.feedback.formats import load as load_feedback
    from prospect.feedback.formats import write as write_feedback
    from prospect.feedback.records import Completion, Pair, Record
    from prospect.losses.own import loss, reference_point
    from prospect.losses.rows import LOSSES
    from prospect.run import Run, train
    from prospect.train.config import TrainConfig

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
    "LOSSES": "prospect.losses.rows:LOSSES",
    "Completion": "prospect.feedback.records:Completion",
    "ConfigError": "prospect.errors:ConfigError",
    "DataError": "prospect.errors:DataError",
    "Feedback": "prospect.feedback.formats:Feedback",
    "MissingExtra": "prospect.errors:MissingExtra",
    "ModelError": "prospect.errors:ModelError",
    "Pair": "prospect.feedback.records:Pair",
    "ProspectError": "prospect.errors:ProspectError",
    "Record": "prospect.feedback.records:Record",
    "Run": "prospect.run:Run",
    "RunError": "prospect.errors:RunError",
    "TrainConfig": "prospect.train.config:TrainConfig",
    "UserError": "prospect.errors:UserError",
    "load_feedback": "prospect.feedback.formats:load",
    "loss": "prospect.losses.own:loss",
    "reference_point": "prospect.losses.own:reference_point",
    "write_feedback": "prospect.feedback.formats:write",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)


class _TrainRoom(ModuleType):
    """`prospect.train` is the package that holds the loop and, called, the function `prospect.run.train`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return importlib.import_module("prospect.run").train(*args, **kwargs)


# Importing any of its modules binds the package to this name, so a function of that name could not last.
importlib.import_module("prospect.train")
sys.modules["prospect.train"].__class__ = _TrainRoom
