"""What the doctor says of a run's feedback: check.json, and findings that are kept for the next run on the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from prospect.data import cache as tokentable
from prospect.data import store, tokens
from prospect.data.options import DataOptions
from prospect.data.template import Template
from prospect.doctor import check
from prospect.doctor.findings import Findings
from prospect.feedback.load import Feedback
from prospect.feedback.records import View


def findings(data: Feedback, held: Feedback | None, tokenizer: Any, view: View, options: DataOptions) -> Findings:
    """What the doctor says of a run's feedback; on the same feedback and questions, what it said before."""
    cache, query = options.cache, (replace(options, cache=None), view)
    name, path = tokentable.identity(Template(tokenizer, options.chat_template, options.special_tokens)), None
    if cache is not None and name is not None:
        key = hashlib.sha256(repr((name, query, _identity(data), held and _identity(held))).encode("utf-8", "replace"))
        # Another doctor may say something else, and so may one who cuts rows in another way.
        for file in (*sorted(Path(check.__file__).parent.glob("*.py")), Path(tokens.__file__)):
            key.update(file.read_bytes())
        path = cache / "checks" / f"{key.hexdigest()[:24]}.json"
        with suppress(OSError, ValueError, LookupError, TypeError):
            return Findings.from_json(store.read_json(path))
    found = check.check(data, heldout=held, tokenizer=tokenizer, options=options, view=view)
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
