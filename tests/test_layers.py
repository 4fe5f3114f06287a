"""Data walks one way: the contracts of pyproject.toml hold, and torch-free modules import no torch when they run."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "prospect").rglob("*.py"))
TORCH_FREE = (
    "prospect",
    "prospect.cli.main",
    "prospect.cli.chat",
    "prospect.cli.completion",
    "prospect.cli.data",
    "prospect.cli.models",
    "prospect.cli.training",
    "prospect.data.dataset",
    "prospect.errors",
    "prospect.evaluate.statistics",
    "prospect.doctor.check",
    "prospect.feedback.load",
    "prospect.losses.registry",
    "prospect.cli.losses",
    "prospect.data.schedule",
    "prospect.data.template",
    "prospect.data.tokens",
    "prospect.training.config",
)


def test_the_contracts_hold() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    if not lint.exists():
        pytest.skip("import-linter is not installed; `make check` runs it")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_torch_free_modules_import_no_torch() -> None:
    code = f"""
import importlib, sys
for name in {TORCH_FREE}:
    importlib.import_module(name)
    assert "torch" not in sys.modules, name
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_say_what_they_are(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), "says nothing about itself"


def test_packages_are_complete() -> None:
    """Every folder with code is a package, and what is not code is shipped with it."""
    for path in SOURCES:
        assert (path.parent / "__init__.py").exists()
    assert (ROOT / "prospect" / "py.typed").exists()
