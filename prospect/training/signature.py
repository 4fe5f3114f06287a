"""The signature of `prospect.train`, made from TrainConfig: an object for `help()`, and for type checkers the text
of `prospect/__init__.pyi`, which a test keeps in step."""

from __future__ import annotations

import typing
from dataclasses import MISSING, Field, fields
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any

from prospect.training.config import TrainConfig

PLACES = {"model": ("str | Path", ""), "data": ("Any", None), "out": ("str | Path | None", None)}
"""What Python takes by position, with type and default: data in memory, too, and a run folder that may be new."""


def signature() -> Signature:
    """`model`, `data` and `out` by position, every other field of TrainConfig by name."""
    hints = typing.get_type_hints(TrainConfig)
    kinds = {"str | Path": str | Path, "Any": Any, "str | Path | None": str | Path | None}
    first = [
        Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kinds[kind])
        for name, (kind, default) in PLACES.items()
    ]
    rest = [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=_default(field), annotation=hints[field.name])
        for field in fields(TrainConfig)
        if field.name not in PLACES
    ]
    return Signature([*first, *rest])


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _wide(field: Field[Any]) -> str:
    """The type that is accepted, of which the field's own is a kind."""
    return str(field.type).replace("tuple[str, ...]", "Sequence[str]").replace("dict[", "Mapping[")


def stub(homes: typing.Mapping[str, str]) -> str:
    """`__init__.pyi`: the public names, each from its home "module:name", and the typed signature of `train`."""
    modules: dict[str, list[str]] = {}
    for name, home in sorted(homes.items()):
        module, _, attribute = home.partition(":")
        modules.setdefault(module, []).append(f"{attribute} as {name}")
    imports = [
        f"from {module} import {', '.join(names)}" if len(names) == 1 else f"from {module} import (\n"
        + "".join(f"    {name},\n" for name in names) + ")"
        for module, names in sorted(modules.items())
    ]  # fmt: skip
    first = [f"    {name}: {kind} = {default!r}," for name, (kind, default) in PLACES.items()]
    rest = [f"    {f.name}: {_wide(f)} = {_default(f)!r}," for f in fields(TrainConfig) if f.name not in PLACES]
    lines = [
        '"""What type checkers and editors see: prospect.training.signature.stub wrote this file."""',
        "",
        "from collections.abc import Mapping, Sequence",
        "from pathlib import Path",
        "from typing import Any, Literal",
        "",
        *imports,
        "",
        "__version__: str",
        "_HOMES: dict[str, str]",
        f"__all__ = {sorted([*homes, '__version__', 'train'])!r}",
        "",
        "def train(",
        *first,
        "    *,",
        *rest,
        ") -> Run: ...",
    ]
    return "\n".join(lines).replace("'", '"') + "\n"
