"""A stranger can follow a run: how many files of the package one has to open."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.trace_run import toy_command, trace

BEFORE, STEP = 52, 16
"""Files entered before the first step, and in a steady one. They only ever get fewer."""


def test_a_run_enters_few_files(assistant: Path, tmp_path: Path) -> None:
    walk = trace(toy_command(assistant, tmp_path))
    assert len(walk.steps) == 8
    assert len(walk.before) <= BEFORE, walk.before
    assert len(walk.steps[2]) <= STEP, walk.steps[2]


def test_the_tracer_sees_functions_and_no_imports() -> None:
    files = trace(["version"]).before
    assert "cli/options.py" in files and "cli/main.py" in files
    assert "errors.py" not in files and "__init__.py" not in files
