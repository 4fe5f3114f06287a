"""Pieces that tests of feedback files share: messages, a good row, and how a fault shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prospect.errors import DataError
from prospect.feedback.load import Feedback, load

GOOD = {"prompt": "2 + 2?", "completion": "4", "label": True}
CHAT = [{"role": "user", "content": "hi"}]


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str, **rest: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **rest}


def answers(feedback: Feedback) -> list[tuple[Any, Any, Any]]:
    """(prompt, content, label) of every completion."""
    return [(r.prompt, c.content, c.label) for r in feedback.records for c in r.completions]


SYSTEM = {"role": "system", "content": "Be brief."}
SKY, BLUE, GREEN = (user("What colour is the sky?"),), "It is blue.", "It is green."
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


def save(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def error_of(source: Any, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        load(source, **options)
    return caught.value
