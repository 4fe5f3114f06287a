"""What the doctor says of a run's feedback: check.json, and findings that are kept for the next run on the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from prospect.data import cache as tokentable
from prospect.data import store, tokens
from prospect.data.template import Template
from prospect.doctor import check
from prospect.doctor.findings import Findings
from prospect.engine.folders import cache_folder
from prospect.feedback.load import Feedback
from prospect.feedback.records import View
from prospect.training.config import TrainConfig


def findings(
    config: TrainConfig, data: Feedback, held: Feedback | None, tokenizer: Any, max_length: int, view: View
) -> Findings:
    """What the doctor says of a run's feedback; on the same feedback and questions, what it said before."""
    cache = cache_folder(config.cache)
    asked = (max_length, config.over_long, config.chat_template, config.threshold, view)
    name, path = tokentable.identity(Template(tokenizer, config.chat_template, config.special_tokens)), None
    if cache is not None and name is not None:
        key = hashlib.sha256(repr((name, asked, _identity(data), held and _identity(held))).encode("utf-8", "replace"))
        # Another doctor may say something else, and so may one who cuts rows in another way.
        for file in (*sorted(Path(check.__file__).parent.glob("*.py")), Path(tokens.__file__)):
            key.update(file.read_bytes())
        path = cache / "checks" / f"{key.hexdigest()[:24]}.json"
        with suppress(OSError, ValueError, LookupError, TypeError):
            return Findings.from_json(store.read_json(path))
    found = check.check(
        data,
        heldout=held,
        tokenizer=tokenizer,
        max_length=max_length,
        over_long=config.over_long,
        chat_template=config.chat_template,
        special_tokens=config.special_tokens,
        threshold=config.threshold,
        view=view,
        cache=cache,
    )
    if path is not None:
        with suppress(OSError):
            store.make_folder(path.parent)
            store.write_json(path, found.to_json())
    return found


def _identity(data: Feedback) -> tuple[Any, ...]:
    """All that the doctor reads of feedback; the digest leaves out the lines that it cites."""
    lines = [done.line for record in data.records for done in record.completions]
    problems = [(problem.line, problem.message) for problem in data.problems]
    return data.path, data.format, data.rows, data.digest, data.notes, lines, problems


def write_check(folder: Path, make: Callable[[], Findings]) -> None:
    """check.json, unless it is there and readable."""
    path = folder / "check.json"
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        Findings.from_json(store.read_json(path))
        return
    store.write_json(path, make().to_json())
