"""Exports of applications in which anything is broken: records, or words that say where the fault is; at once."""

from __future__ import annotations

import copy
import csv
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prospect.data.write import write
from prospect.doctor.check import check
from prospect.feedback import imports
from prospect.feedback.layouts import ColumnChoice, layout_of
from prospect.feedback.load import AS_NAMED, load
from prospect.feedback.readers import JudgedBy
from prospect.feedback.records import readable
from tests.helpers import datasets
from tests.helpers.datasets import ASKED, PEAR
from tests.helpers.exports import EXPORTS
from tests.helpers.fuzzing import fuzz, in_words

WILD: list[Any] = [
    *(None, True, 0, -1, 3.5, 1e300, 10**30, "", " ", "x", "true", "1", "-1", "thumbs_up", "a1", "q", "\ud800"),
    *("[", "{}", '[{"a": 1}]', "<details", '<details type="tool_calls">', '<details type="reasoning">x</details>'),
    *([], {}, [None], [[]], [{}], ["m-b", 3], {"a": {"b": 1}}, {"role": "user"}, {"content": "x"}),
    [{"role": "assistant", "content": "x"}],
    *(
        "tie",
        "both_bad",
        "model_b",
        "N/A",
        '["x", null]',
        "\n\nHuman: x\n\nAssistant:",
        "a\n<extra_id_1>User\n",
        float("nan"),
    ),
    {"name": ["+1", "-1"], "count": [1]},
]
JUDGEMENTS = (
    *([""] * 12),
    *(
        "rank",
        "emoji",
        "quality",
        "both",
        "is_safe",
        "safer_response_id",
        "verbosity",
        "user-feedback",
        "user_score",
        "x",
    ),
)
"""Names for --judgement; most often none, since most exports lack the others."""

WHO: tuple[JudgedBy, ...] = ("person", "model", "any")
SAMPLES: dict[str, list[list[Any]]] = {
    **{name: [[row] for row in rows] for name, rows in datasets.SAMPLES.items()},
    **{name: list(files.values()) for name, files in EXPORTS.items()},
}
"""Of every kind of export, its files: a row that refers to another may stand in a file of its own."""

HANG = 5.0
"""Seconds that no file of a few rows may take."""

Place = tuple[Any, ...]


def places(value: Any, at: Place = ()) -> list[Place]:
    """Every value in rows: its keys and indices."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, part in inner for place in places(part, (*at, key)))]


def changed(value: Any, place: Place, new: Any, drop: bool) -> None:
    """Put `new` at a place, or nothing."""
    for key in place[:-1]:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):  # an earlier change took it away
            return
    if isinstance(value, dict) or (isinstance(value, list) and isinstance(place[-1], int) and place[-1] < len(value)):
        if not drop:
            value[place[-1]] = new
        elif isinstance(value, list) or place[-1] in value:
            del value[place[-1]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


def save(path: Path, rows: list[Any]) -> None:
    """Rows as a file of the kind that its name says; in CSV what is no text is written as JSON."""
    if path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    else:
        objects = [row for row in rows if isinstance(row, dict)] or [{}]
        with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in objects for key in row)))
            writer.writeheader()
            for row in objects:
                cells = {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items() if v is not None}
                writer.writerow(cells)


def read(
    folder: Path, files: list[list[Any]], keep_going: bool, suffix: str = ".json", choice: ColumnChoice = AS_NAMED
) -> Any:
    """What the files hold, read as one folder, examined, and written and read again."""
    for old in folder.iterdir():
        old.unlink()
    for i, rows in enumerate(files):
        save(folder / f"part-{i}{suffix}", rows)
    began = time.monotonic()
    result = in_words(lambda: load(folder, keep_going=keep_going, choice=choice))
    assert time.monotonic() - began < HANG
    if result is not None:
        in_words(lambda: check(result))
    if result is not None and result.records:
        write(result.records, folder / "out.jsonl")
        assert load(folder / "out.jsonl").records == result.records
    return result


@pytest.mark.parametrize("name", SAMPLES)
def test_every_sample_is_read(folder: Path, name: str) -> None:
    feedback = read(folder, SAMPLES[name], False)
    texts = {c.text for r in feedback.records for c in r.completions}
    assert PEAR in texts
    assert all(readable(r.prompt).endswith(ASKED) for r in feedback.records)


def test_every_layout_of_an_export_has_a_sample() -> None:
    names = {
        layout_of("auto", frozenset(key for row in rows for key in row), rows).name
        for files in SAMPLES.values()
        for rows in files
    }
    assert {layout.name for layout in imports.LAYOUTS} == names


@fuzz(250)
@given(
    data=st.data(),
    name=st.sampled_from(list(SAMPLES)),
    keep_going=st.booleans(),
    suffix=st.sampled_from([".json", ".jsonl", ".csv"]),
    choice=st.builds(ColumnChoice, judgement=st.sampled_from(JUDGEMENTS), judged_by=st.sampled_from(WHO)),
)
def test_exports_with_anything_anywhere(
    folder: Path, data: st.DataObject, name: str, keep_going: bool, suffix: str, choice: ColumnChoice
) -> None:
    files = [copy.deepcopy([*rows, *rows]) for rows in SAMPLES[name]]
    for _ in range(data.draw(st.integers(1, 3))):
        rows = files[data.draw(st.integers(0, len(files) - 1))]
        place = data.draw(st.sampled_from([place for place in places(rows) if place] or [(0,)]))
        changed(rows, place, copy.deepcopy(data.draw(st.sampled_from(WILD))), data.draw(st.booleans()))
    read(folder, files, keep_going, suffix, choice)
