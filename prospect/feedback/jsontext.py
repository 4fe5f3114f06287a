"""JSON that somebody else wrote, within bounds: whatever is read here can be written again."""

from __future__ import annotations

import json
from typing import Any

from prospect.errors import DataError

MOST_LEVELS = 100
"""Deepest nesting of lists and objects that is read. Python's own limit depends on the caller."""

TOO_DEEP = f"JSON is nested too deeply (more than {MOST_LEVELS} levels)"


def json_value(text: str) -> Any:
    """The value that `text` holds. Raises DataError with the line (within the text) where it breaks, and where it is
    nested deeper than MOST_LEVELS, has a whole number of more digits than Python converts, or names a key twice."""
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise DataError(f"broken JSON at column {error.colno}: {error.msg}", line=error.lineno) from None
    except RecursionError:
        raise DataError(TOO_DEEP) from None
    except DataError:
        raise
    except ValueError:  # the only other one is Python's limit on the digits of a whole number
        raise DataError("JSON holds a number of more than 4,300 digits. Write it as text, or shorten it") from None
    if text.count("[") + text.count("{") > MOST_LEVELS and too_deep(value):
        raise DataError(TOO_DEEP)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object. Raises DataError where a key stands twice, since one of its values would be lost."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f'an object has the key "{twice}" twice. Keep one of the two')
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def too_deep(value: Any) -> bool:
    """Whether lists and objects are nested deeper than MOST_LEVELS. It walks level by level, not by recursion."""
    level = [value]
    for _ in range(MOST_LEVELS + 1):
        inner: list[Any] = []
        for part in level:
            if isinstance(part, dict):
                inner.extend(part.values())
            elif isinstance(part, list | tuple):
                inner.extend(part)
        if not inner:
            return False
        level = inner
    return True
