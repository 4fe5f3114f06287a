"""From names to functions: "module:name" of this package, "file.py:name" of the user's own; and their hyper-parameters,
which are their keyword-only arguments and nothing else."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from prospect.errors import ConfigError, nearest

if TYPE_CHECKING:
    from prospect.losses.table import Loss

Function = Callable[..., Any]

CHOICES: dict[str, dict[str, str]] = {
    "value": {
        name: f"prospect.losses.values:{name}" for name in ("logistic", "logsigmoid", "identity", "hinge", "power")
    },
    "divergence": {
        name: f"prospect.losses.divergences:{name}"
        for name in ("reverse_kl", "forward_kl", "jensen_shannon", "alpha_divergence")
    },
}
"""Arguments that are functions themselves, chosen by name or as "file.py:name"; their own keyword-only arguments
become arguments of the loss."""

POSITIVE = {"beta", "tau", "temperature", "clip"}
NOT_NEGATIVE = {"desirable_weight", "undesirable_weight", "nll_weight", "value_weight", "kl_weight", "regularization"}


def load(name: str | Function) -> Function:
    """The function called "module:name" or "file.py:name"; a function is returned as it is.

    The user's file is run, as they asked for by naming it. Raises ConfigError where it is missing or fails.
    """
    if not isinstance(name, str):
        return name
    place, _, attribute = name.rpartition(":")
    if not place.endswith(".py"):
        found: Function = getattr(importlib.import_module(place), attribute)
        return found
    module = _file(place)
    if not callable(getattr(module, attribute, None)):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise ConfigError(f'{place} has no function "{attribute}".{nearest(attribute, functions)}')
    own: Function = getattr(module, attribute)
    return own


@functools.cache
def _file(place: str) -> ModuleType:
    path = Path(place).expanduser()
    if not path.is_file():
        raise ConfigError(f"there is no file {place}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None, "a file that ends with .py has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{place} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def keywords(function: Function) -> dict[str, Any]:
    """The keyword-only arguments of a function with their defaults; inspect.Parameter.empty where it has none."""
    found = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in found if p.kind is inspect.Parameter.KEYWORD_ONLY}


def defaults(loss: Loss, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Every hyper-parameter of a loss with its default, those of the chosen value function included.

    Raises ConfigError where two terms of a mixture share an argument but not its default, and none is given.
    """
    given = given or {}
    found: dict[str, Any] = {}
    for name in loss.functions:
        for key, default in keywords(load(name)).items():
            if key in CHOICES:
                chosen = given.get(key, default.__name__ if callable(default) else default)
                found[key] = chosen
                found |= keywords(_choice(key, chosen))
            elif key in found and key not in given and found[key] != default:
                raise ConfigError(
                    f"the parts of {loss.name} have different defaults for {key} ({found[key]} and {default}): "
                    f"give --loss.{key}"
                )
            else:
                found[key] = default
    return found


def arguments(loss: Loss, given: Mapping[str, Any], data: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Defaults, then constants taken from the data, then what the user gave. Raises ConfigError on unknown names, on
    values out of range, and where an argument without default is not given."""
    known = defaults(loss, given)
    for name, value in given.items():
        if name not in known:
            raise ConfigError(
                f'the loss "{loss.name}" has no argument "{name}".{nearest(name, known)} '
                f"It has: {', '.join(known) or 'none'}"
            )
        if name not in CHOICES:
            _check(name, value)
    numbers = {name: value if name in CHOICES else float(value) for name, value in given.items()}
    found = {**known, **{k: v for k, v in (data or {}).items() if k in known}, **numbers}
    missing = [name for name, value in found.items() if value is inspect.Parameter.empty]
    if missing:
        told = " ".join(f"--loss.{name} VALUE" for name in missing)
        raise ConfigError(f"{loss.name} needs {told}: no value for it is published, so there is no default")
    return found


def bound(function: str | Function, values: Mapping[str, Any]) -> Function:
    """The function with its keyword-only arguments filled in from `values`."""
    own = load(function)
    filled: dict[str, Any] = {}
    for key in keywords(own):
        filled[key] = bound(_choice(key, values[key]), values) if key in CHOICES else values[key]
    return functools.partial(own, **filled) if filled else own


def _choice(argument: str, name: Any) -> Function:
    known = CHOICES[argument]
    if isinstance(name, str) and ".py:" in name:
        return load(name)
    if name not in known:
        raise ConfigError(
            f'--loss.{argument}: there is no "{name}".{nearest(str(name), known)} Known: {", ".join(known)}'
        )
    return load(known[name])


def _check(name: str, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if name in POSITIVE and not (number and value > 0):
        raise ConfigError(f"--loss.{name} must be a positive number, not {value!r}")
    if name in NOT_NEGATIVE and not (number and value >= 0):
        raise ConfigError(f"--loss.{name} must be 0 or more, not {value!r}")
    if name == "epsilon" and not (number and 0 <= value < 0.5):
        raise ConfigError(f"--loss.epsilon must be from 0 to below 0.5, not {value!r}")
    if not number:
        raise ConfigError(f"--loss.{name} must be a number, not {value!r}")
