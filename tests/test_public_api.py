"""The public names: exactly these, each importable, and importing the package costs nothing."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import pydoc
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import prospect
from prospect.errors import DISTRIBUTION
from prospect.training.config import TrainOptions

ROOT = Path(__file__).parents[1]
NAMES = {
    "LOSSES",
    "Branches",
    "Dataset",
    "Policy",
    "Statistics",
    "Completion",
    "ConfigError",
    "DataError",
    "DataOptions",
    "Feedback",
    "MissingExtra",
    "ModelError",
    "Pair",
    "ProspectError",
    "Record",
    "Run",
    "RunError",
    "TrainConfig",
    "UserError",
    "__version__",
    "build_dataset",
    "forward",
    "generate",
    "load_feedback",
    "load_model",
    "loss",
    "reference_point",
    "train",
    "write_feedback",
}


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_all_is_pinned() -> None:
    assert set(prospect.__all__) == NAMES
    assert set(dir(prospect)) == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_name_is_there(name: str) -> None:
    assert getattr(prospect, name) is not None


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        getattr(prospect, "trian")  # noqa: B009


def test_the_version_is_the_installed_one() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## {re.escape(prospect.__version__)}$", changelog, re.MULTILINE)
    try:
        installed = version(DISTRIBUTION)
    except PackageNotFoundError:
        pytest.skip(f"{DISTRIBUTION} is not installed under this name; `make test` installs it")
    assert prospect.__version__ == installed


def test_pip_is_told_the_name_that_is_ours() -> None:
    """On the index "prospect" is a stranger's package: no word of ours may send anybody there."""
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"] == DISTRIBUTION
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md"]
    named = [name for page in pages for name in re.findall(r'pip install\s+"([\w-]+)\[', page.read_text())]
    assert named and set(named) == {DISTRIBUTION}
    assert f'"{DISTRIBUTION}[wandb]"' in str(prospect.MissingExtra("wandb", "wandb", "--track wandb"))


def test_import_is_lazy() -> None:
    heavy = ("torch", "transformers", "numpy", "rich", "tyro", "prospect.run")
    assert python(f"import sys, prospect; print([m for m in {heavy} if m in sys.modules])").strip() == "[]"


def test_train_is_a_function_and_a_package() -> None:
    """Whatever was imported before."""
    code = """
import prospect.training.config, prospect
print(callable(prospect.train), prospect.training.config.TrainConfig is prospect.TrainConfig)
try:
    prospect.train(model="m", data="d", batch_size=0)
except prospect.ConfigError as error:
    print(error)
"""
    callable_, message = python(code).strip().splitlines()
    assert callable_ == "True True"
    assert message.startswith("--batch-size must be at least 1")


def test_train_shows_its_signature() -> None:
    """To `help()` and to type checkers: the fields of the dataclass, with types and defaults."""
    shown = inspect.signature(prospect.train)
    assert list(shown.parameters)[:3] == ["model", "data", "out"]
    fields = {field.name: field for field in dataclasses.fields(prospect.TrainConfig)}
    assert set(shown.parameters) == set(fields)
    assert shown.parameters["batch_size"].default == fields["batch_size"].default
    assert "batch_size: int = 32" in pydoc.render_doc(prospect.train, renderer=vars(pydoc)["plaintext"])
    assert "Align a model with feedback" in pydoc.render_doc(prospect.train, renderer=vars(pydoc)["plaintext"])


def test_type_checkers_see_the_same_options() -> None:
    """TrainOptions has the dataclass's fields, each of its type or, of collections, a wider one."""
    fields = {f.name: str(f.type) for f in dataclasses.fields(prospect.TrainConfig)}
    wider = {
        name: kind.replace("tuple[str, ...]", "Sequence[str]").replace("dict[", "Mapping[")
        for name, kind in fields.items()
        if name not in ("model", "data", "out")
    }
    assert {name: kind.__forward_arg__ for name, kind in TrainOptions.__annotations__.items()} == wider


def test_type_checkers_see_every_public_name() -> None:
    """The imports that only they read are of the modules in which the names are found."""
    tree = ast.parse(Path(prospect.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    homes = {
        alias.asname or alias.name: f"{node.module}:{alias.name}".removeprefix("prospect.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert homes.pop("TrainOptions") and homes == prospect._HOMES


def test_an_option_of_another_name_is_explained() -> None:
    with pytest.raises(prospect.ConfigError, match='unknown key "lr". Did you mean "learning_rate"'):
        prospect.train(model="m", data="d", out="o", lr=1e-5)


def test_errors_are_the_builtin_ones_too() -> None:
    assert issubclass(prospect.UserError, ValueError)
    assert issubclass(prospect.RunError, RuntimeError)
    assert issubclass(prospect.MissingExtra, ImportError)
    assert all(inspect.isclass(getattr(prospect, n)) for n in NAMES if n.endswith("Error"))


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_need_no_deep_import(path: Path) -> None:
    imports = re.findall(r"^\s*(?:from|import) (prospect[\w.]*)", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(imports) <= {"prospect"}
