"""What can go wrong, drawn once.

    ProspectError
    ├── UserError (also ValueError)      the input is wrong: exit code 2
    │   ├── DataError                    feedback files, labels, views, lengths
    │   ├── ConfigError                  flags, YAML, loss arguments, run folders
    │   └── ModelError                   model folders, weights, chat templates
    ├── RunError (also RuntimeError)     the run failed: exit code 1
    │   ├── NonFiniteError               a NaN or infinity in a loss or gradient
    │   └── Interrupted                  Ctrl-C; the checkpoint is saved
    └── MissingExtra (also ImportError)  an optional package is absent: exit code 2

A message says what, where, what was expected and what to do. What only a bug in Prospect can cause is an `assert`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

DISTRIBUTION = "prospect-kto"
"""What pip calls us: on the index, "prospect" is another package."""


class ProspectError(Exception):
    """Any error that Prospect raises on purpose. `exit_code` is what the command line ends with."""

    exit_code = 1


class UserError(ProspectError, ValueError):
    """The user's input is wrong; nothing was written."""

    exit_code = 2


class DataError(UserError):
    """Wrong feedback data.

    `path` and `line` (1-based; for tables, the row) say where, `row` is the record or completion id, `problems` holds
    every single finding where more than one was collected.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | Path | None = None,
        line: int | None = None,
        row: str | None = None,
        problems: tuple[DataError, ...] = (),
    ) -> None:
        self.message, self.path, self.line, self.row, self.problems = message, path, line, row, problems
        where = f"{path}" if path is not None else ""
        if line:
            where += f":{line}" if where else f"row {line}"
        if row is not None:
            where += f" ({row})" if where else str(row)
        super().__init__(f"{where}: {message}" if where else message)


class ConfigError(UserError):
    """A wrong flag, YAML key, loss argument or run folder."""


class ModelError(UserError):
    """A model folder that cannot be used as asked."""


class RunError(ProspectError, RuntimeError):
    """The run started and could not go on."""


class NonFiniteError(RunError):
    """A loss or gradient is NaN or infinite; `rows` are the ids of the rows of that step."""

    def __init__(self, message: str, rows: Iterable[str] = ()) -> None:
        self.rows = tuple(rows)
        super().__init__(message)


class Interrupted(RunError):
    """The user pressed Ctrl-C; the run was saved and can be resumed."""

    exit_code = 130


class MissingExtra(ProspectError, ImportError):
    """An optional package is not installed."""

    exit_code = 2

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f'{purpose} needs the package "{package}". Install it with: pip install "{DISTRIBUTION}[{extra}]"'
        )


def brief(value: Any, write: Callable[[Any], str] = repr) -> str:
    """A value as text; of a long one its beginning."""
    text = written(value, write)
    return text if len(text) <= 60 else text[:57] + "..."


def written(value: Any, write: Callable[[Any], str] = repr) -> str:
    """A value as text; dots where Python cannot write it (thousands of digits or levels)."""
    try:
        return write(value)
    except (ValueError, RecursionError):
        return "..."


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean "x"?` for the closest known name, or an empty string."""
    match = difflib.get_close_matches(name[:100], list(known), n=1, cutoff=0.5)
    return f' Did you mean "{match[0]}"?' if match else ""
