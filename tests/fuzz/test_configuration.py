"""Configuration files and command lines of any content: an exit code and words, never a traceback."""

from __future__ import annotations

import json
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prospect.cli.main import COMMANDS, main
from prospect.training.config import TrainConfig, from_dict, load_options
from tests.helpers.fuzzing import BROKEN, DEEP, LONG_NUMBER, as_bytes, fuzz, in_words

NAMES = [field.name for field in fields(TrainConfig)]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([10**4000, -1, "auto"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
YAML = [
    f"epochs: {LONG_NUMBER}",
    f"epochs: 0x{LONG_NUMBER}",
    f"loss: {DEEP}",
    "a: &a [*a]",
    "? [1]\n: 2",
    "epochs: 2001-99-99",
    "&a : *a",
    "loss: !!python/object:os.system x",
    "x: !!binary '%'",
    "'x",
    "\t- x",
    "seed: 1e999",
    "a:\n" * 3000,
    "{" * 5000,
    "- " * 5000,
    "loss_args: {beta: [1]}",
    "track: wandb",
    "epochs: .inf",
]
WORDS = st.sampled_from(
    [
        *COMMANDS,
        "--help",
        "--resume",
        "--json",
        "--config",
        "--loss.beta",
        "--loss.",
        "--debug",
        "--quiet",
        "--",
        "--out",
        "--model",
        "--data",
        "nowhere",
        "0",
        "-1",
        "nan",
        "9" * 5000,
        "",
        " ",
        "\x00",
        "../..",
        "\udcff",
        "=",
        "--=",
        *(f"--{name.replace('_', '-')}" for name in NAMES),
    ]
)


@fuzz(100)
@given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), VALUES, max_size=4))
def test_any_values_make_a_config_or_words(values: dict[str, Any]) -> None:
    in_words(lambda: from_dict(values))


@pytest.mark.parametrize("name", NAMES)
def test_numbers_that_python_refuses_to_write(name: str) -> None:
    for value in (10**5000, [10**5000], {"beta": 10**5000}, "a\0b"):
        in_words(partial(from_dict, {name: value}))


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_broken_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"run{suffix}"
    for text in BROKEN + YAML:
        path.write_bytes(as_bytes(text))
        in_words(lambda: from_dict(load_options(path)[0]))


@fuzz(60)
@given(st.text(alphabet="abc:-[]{}&*!|>'\"#%@`,? \n\t0.9x", max_size=60))
def test_any_yaml(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text)
    in_words(lambda: from_dict(load_options(path)[0]))


@fuzz(60)
@given(
    command=st.sampled_from(sorted(set(COMMANDS) - {"demo", "version"})),
    words=st.lists(WORDS, max_size=5),
)
def test_any_command_line(tmp_path_factory: pytest.TempPathFactory, command: str, words: list[str]) -> None:
    """In a folder of its own, without network, whatever is typed ends with one of the exit codes."""
    folder = tmp_path_factory.getbasetemp() / "command-line"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("sys.stdin", None)
        assert main([*command.split(), *(word for word in words if word != "--debug")]) in (0, 1, 2, 130)


def test_json_that_no_number_fits(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"epochs": 1}).replace("1", LONG_NUMBER))
    assert main(["train", "--config", str(path)]) == 2
