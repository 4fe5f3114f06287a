"""The documents as a site: every page is in its navigation, links lead somewhere, and the glossary's places are true.
`make docs` builds it; these tests need nothing that builds sites."""

from __future__ import annotations

import re
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import yaml

import prospect
import prospect.errors

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def leaves(navigation: Any) -> list[str]:
    """The pages of a navigation, in order."""
    if isinstance(navigation, str):
        return [navigation]
    parts = navigation.values() if isinstance(navigation, dict) else navigation
    return [page for part in parts for page in leaves(part)]


def test_every_page_is_in_the_navigation_once() -> None:
    navigation = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(navigation) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda p: p.relative_to(DOCS).as_posix())
def test_links_stay_inside_the_site(page: Path) -> None:
    """There is nothing else in it; that they lead somewhere is a test of all documents."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:|#", link):
            target = (page.parent / link.partition("#")[0]).resolve()
            assert target.exists() and DOCS in target.parents, link


def test_nothing_of_the_site_comes_from_a_network() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert config["theme"]["font"] is False
    assert not {"extra_css", "extra_javascript"} & set(config)


def test_the_glossary_knows_where_everything_is() -> None:
    """Each class exists where the page says, is defined there, and has its name."""
    page = (DOCS / "glossary.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \*\*(\w+)\*\* \|.*\| `([\w.]+)` \|$", page, re.MULTILINE)
    assert len(rows) >= 15 and len({name for name, _ in rows}) == len(rows)
    for name, place in rows:
        module, _, attribute = place.rpartition(".")
        value = resolve_name(f"{module}:{attribute}")
        assert (value.__module__, value.__name__) == (module, attribute), place
        assert name == attribute


def test_every_public_name_has_its_place_among_the_api() -> None:
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    places = {place.removeprefix("prospect.") for place in re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE)}
    errors = {name for name in prospect.__all__ if isinstance(getattr(prospect, name), type)} & set(
        vars(prospect.errors)
    )
    assert "errors" in places
    assert places - {"errors"} == set(prospect.__all__) - errors - {"__version__", "LOSSES"}


DECISIONS = sorted(path for path in (DOCS / "decisions").glob("*.md") if path.name != "README.md")


@pytest.mark.parametrize("page", DECISIONS, ids=lambda p: p.stem)
def test_a_decision_says_what_and_why_what_was_measured_and_by_which_command(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    heads = re.findall(r"^- \*\*(\w+)\*\*: \S", text, re.MULTILINE)
    assert heads == ["What", "Why", "Measured", "Command"]
    assert all((ROOT / path).exists() for path in re.findall(r"\btests/[\w/.]+", text))
    title = text.splitlines()[0].removeprefix("# ")
    assert f"- [{title}]({page.name}): " in (page.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")]), ids=lambda p: p.stem)
def test_files_that_pages_name_exist(page: Path) -> None:
    """`engine/head.py` is in the package, `tests/test_layers.py` in the repository, `quotes.py` in any room."""
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:[\w-]+/)*\w+\.(?:py|toml))`", text):
        places = [ROOT / name, ROOT / "prospect" / name, *(() if "/" in name else (ROOT / "prospect").rglob(name))]
        own = name in ("my_losses.py", "my_points.py", "conftest.py")
        assert own or any(place.exists() for place in places), f"{page.name} speaks of {name}"
    for module in re.findall(r"python -m ((?:benchmarks|research|tools|tests|prospect)[\w.]*)", text):
        path = ROOT.joinpath(*module.split("."))
        assert path.is_dir() or path.with_suffix(".py").exists(), f"{page.name} speaks of {module}"
