"""Records as files of Prospect JSONL, and the rows that were left out.

write(feedback.records, "mine.jsonl")    # load("mine.jsonl").records == feedback.records
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prospect.data import store
from prospect.errors import DataError, written
from prospect.feedback.load import Problem, dumps, to_json
from prospect.feedback.records import Record


def write(records: Iterable[Record], path: str | Path) -> None:
    """Write Prospect JSONL (packed if `path` ends in .gz), whole or not at all. Raises DataError where it cannot."""
    write_rows(map(to_json, records), path)


def write_rows(rows: Iterable[dict[str, Any]], path: str | Path) -> None:
    """Write JSON lines as `write` does."""
    _write_lines(map(dumps, rows), Path(path))


def write_problems(problems: Iterable[Problem], path: str | Path) -> None:
    """Write the rows that were left out: {"line", "reason", "row"} on each line, with their "file" where they come from
    several. Raises DataError where it cannot."""
    problems = list(problems)
    several = len({problem.path for problem in problems}) > 1

    def written_row(problem: Problem) -> str:
        line = {"line": problem.line, "reason": problem.message, "row": problem.raw}
        if several:
            line = {"file": str(problem.path), **line}
        try:
            return json.dumps(line, ensure_ascii=False, default=str)
        except (ValueError, RecursionError):  # from memory: thousands of digits or levels, or a circle
            return json.dumps({**line, "row": written(problem.raw)})

    _write_lines(map(written_row, problems), Path(path))


def _write_lines(lines: Iterable[str], path: Path) -> None:
    content = (store.encoded(f"{line}\n") for line in lines)
    try:
        with store.replacing(path) as file:
            if path.suffix == ".gz":
                with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:  # no name, no time: same bits every time
                    packed.writelines(content)
            else:
                file.writelines(content)
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}", path=path) from None
