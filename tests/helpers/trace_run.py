"""Which files of the package a run enters: what a stranger would have to open to follow it.

walk = trace(["train", "--model", ..., "--out", ...])
walk.before        files with a function that runs before the first step
walk.steps[2]      files with a function that runs in the third step, from one call of `step_gradient` to the next

python -m tests.helpers.trace_run prints both for 32 toy rows
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import prospect
from prospect.cli.main import main

PACKAGE = str(Path(prospect.__file__).parent) + os.sep


@dataclass
class Walk:
    """Files of the package, by their names inside it, in the order in which they are entered first."""

    before: list[str] = field(default_factory=list)
    steps: list[list[str]] = field(default_factory=list)

    def enter(self, file: str, function: str) -> None:
        if file == "training/step.py" and function == "step_gradient":
            self.steps.append([])
        files = self.steps[-1] if self.steps else self.before
        if file not in files:
            files.append(file)


def trace(arguments: list[str]) -> Walk:
    """The walk of one command line that trains. Raises AssertionError where it fails."""
    walk = Walk()

    def enter(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        is_function = code.co_flags & inspect.CO_OPTIMIZED  # else the body of a module or class, run by an import
        # The watchdog of data/template.py wakes by the clock, whatever the run does.
        waits = threading.current_thread().name == "prospect-deadline"
        if event == "call" and is_function and code.co_filename.startswith(PACKAGE) and not waits:
            walk.enter(code.co_filename.removeprefix(PACKAGE), code.co_name)

    threading.setprofile(enter)
    sys.setprofile(enter)
    try:
        code = main(arguments)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert code == 0, f"prospect {' '.join(arguments)} ended with {code}"
    return walk


def toy_rows(path: Path, count: int = 32) -> Path:
    """`count` answers, one to a question, thumbs up and down in turn."""
    rows = [
        {"prompt": f"What is {k} and {k + 1}?", "completion": f"It is {2 * k + 1}.", "label": k % 2 == 0}
        for k in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def toy_command(model: Path, folder: Path) -> list[str]:
    """`prospect train` on 32 toy rows: eight steps of four."""
    data = toy_rows(folder / "toy.jsonl")
    flags = ["--batch-size", "4", "--device", "cpu", "--cache", str(folder / "cache"), "--out", str(folder / "run")]
    return ["--quiet", "train", "--model", str(model), "--data", str(data), *flags]


if __name__ == "__main__":
    from tests.helpers.models import tiny
    from tests.helpers.tokenizers import CHATML

    with tempfile.TemporaryDirectory() as place:
        walked = trace(toy_command(tiny(Path(place) / "assistant", CHATML, seed=0), Path(place)))
    for title, files in (("before the first step", walked.before), ("in the third step", walked.steps[2])):
        print(f"{len(files)} files {title}:", *files, sep="\n  ")
