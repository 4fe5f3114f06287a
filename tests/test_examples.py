"""The recipes: short versions of them run and teach, and their page names the figures that they do."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

import prospect

EXAMPLES = Path(__file__).parents[1] / "examples"
PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"


@pytest.fixture
def recipe(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The recipe of that name, for a few rows and steps."""
    monkeypatch.setenv("PROSPECT_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(EXAMPLES)
    module = importlib.import_module(request.param)
    monkeypatch.setattr(module, "OPTIONS", module.OPTIONS | {"max_steps": 4, "samples": 0, "batch_size": 16})
    return module


@pytest.mark.parametrize("recipe", ["recipe_thumbs", "recipe_pairs"], indirect=True)
def test_a_recipe_runs(recipe: ModuleType, tmp_path: Path) -> None:
    before, after = recipe.main(tmp_path / "run", 96, 32)
    assert 0 <= before <= 1 and 0 <= after <= 1
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("recipe", ["recipe_own_loss"], indirect=True)
def test_the_recipe_of_ones_own_loss_runs(recipe: ModuleType, tmp_path: Path) -> None:
    results = recipe.main(tmp_path, 96, 32)
    assert list(results) == ["kto", "exponential"]
    assert all(0 <= value <= 1 for pair in results.values() for value in pair)


def test_questions_of_other_seeds_are_other_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    letters = importlib.import_module("letters")
    names = [{name for _, name, _ in letters.questions(2000, seed)} for seed in range(3)]
    assert all(len(one) == 2000 for one in names) and not names[0] & names[1] and not names[1] & names[2]
    assert letters.likes("belina", "a", "Belina ends with a.")
    assert not any(letters.likes("belina", "a", text) for text in ("", "Duh. It is a.", "It is b.", "a is the answer"))


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("recipe_*.py")))
def test_the_page_has_the_figures_of_the_docstrings(name: str) -> None:
    docstring = (EXAMPLES / name).read_text(encoding="utf-8").split('"""')[1]
    (row,) = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `examples/{name}`")]
    shares = re.findall(r"\d+\.\d%", docstring)
    assert shares and all(share in row for share in shares)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.name)
def test_examples_need_public_names_only(path: Path) -> None:
    """`import prospect` and names that are pinned: no module of ours is looked into."""
    text = path.read_text(encoding="utf-8")
    assert not re.findall(r"^\s*(?:from|import) prospect\.", text, re.MULTILINE)
    assert set(re.findall(r"\bprospect\.([A-Za-z_]\w*)\(", text)) <= set(prospect.__all__)
