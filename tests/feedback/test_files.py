"""The sources of rows: every kind of file, folder and table gives the same rows, and the line where each stands."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prospect.data.write import write_problems
from prospect.errors import DataError
from prospect.feedback.load import load
from prospect.feedback.records import Completion, Record
from prospect.feedback.sources import read_rows
from prospect.feedback.tables import Unreadable

ROWS: list[dict[str, Any]] = [
    {"prompt": "2 + 2?", "completion": "4", "label": True},
    {"prompt": "2 + 2?", "completion": "5, or\n“six”", "label": False},
]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def csv_text(delimiter: str) -> bytes:
    body = [["prompt", "completion", "label"], ["2 + 2?", "4", "true"], ["2 + 2?", '"5, or\n“six”"', "false"]]
    return "\r\n".join(delimiter.join(row) for row in body).encode()


def parquet(path: Path, rows: list[dict[str, Any]] = ROWS) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "a.jsonl": lambda p: p.write_bytes(lines(ROWS)),
    "no-newline-at-end.jsonl": lambda p: p.write_bytes(lines(ROWS).rstrip()),
    "windows.jsonl": lambda p: p.write_bytes(b"\xef\xbb\xbf" + lines(ROWS).replace(b"}\n", b"}\r\n")),
    "a.jsonl.gz": lambda p: p.write_bytes(gzip.compress(lines(ROWS))),
    "gzip-by-another-name.jsonl": lambda p: p.write_bytes(gzip.compress(lines(ROWS))),
    "lines.json": lambda p: p.write_bytes(lines(ROWS)),
    "without-suffix": lambda p: p.write_bytes(lines(ROWS)),
    "array.json": lambda p: p.write_text(json.dumps(ROWS, indent=2)),
    "array.json.gz": lambda p: p.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "wrapped.json": lambda p: p.write_text(json.dumps({"data": ROWS}, indent=1)),
    "wrapped-in-one-line.json": lambda p: p.write_text(json.dumps({"data": ROWS})),
    "a.csv": lambda p: p.write_bytes(csv_text(",")),
    "bom.csv": lambda p: p.write_bytes(b"\xef\xbb\xbf" + csv_text(",")),
    "semicolons.csv": lambda p: p.write_bytes(csv_text(";")),
    "a.tsv": lambda p: p.write_bytes(csv_text("\t")),
    "a.csv.gz": lambda p: p.write_bytes(gzip.compress(csv_text(","))),
    "a.parquet": parquet,
    "label=1.parquet": parquet,
    "parquet-by-another-name": parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_holds_the_same_record(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    feedback = load(path)
    (record,) = feedback.records
    assert record.prompt == "2 + 2?"
    assert [(c.content, c.label) for c in record.completions] == [("4", True), ("5, or\n“six”", False)]
    assert (feedback.rows, feedback.format, feedback.path) == (2, "unpaired", str(path))


def test_lines_are_the_lines_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n" + lines(ROWS[:1]) + b"  \n\n" + lines(ROWS[1:]))
    assert [line for line, _ in read_rows(path)] == [2, 5]
    assert [c.line for c in load(path).records[0].completions] == [2, 5]
    assert [c.id for c in load(path).records[0].completions] == ["line2", "line5"]


def test_unicode_line_separators_are_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines([{"text": "one\u2028two\u0085three\x0bfour"}]))
    assert load(path).records[0].completions[0].content == "one\u2028two\u0085three\x0bfour"


def test_csv_lines_count_the_lines_inside_cells(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text\n"one\ntwo"\n\nthree\n')
    assert list(read_rows(path)) == [(2, {"text": "one\ntwo"}), (5, {"text": "three"})]


@pytest.mark.parametrize("first", ["sep=;\n", "sep=;\r\n", '"sep=;"\n'])
def test_excels_first_line_names_the_delimiter(tmp_path: Path, first: str) -> None:
    """It is no header; the lines keep their numbers."""
    path = tmp_path / "a.csv"
    path.write_text(f"{first}prompt;completion;label\na, b;c, d;up\ne;f;down\n", newline="")
    assert [(r.prompt, c.text, c.label, c.line) for r in load(path).records for c in r.completions] == [
        ("a, b", "c, d", True, 3),
        ("e", "f", False, 4),
    ]


def test_the_case_of_excel(shared: Path) -> None:
    records = load(shared / "cases/exports/e19_sep.csv").records
    assert [(r.prompt, c.text, c.label) for r in records for c in r.completions] == [
        ("a", "b", True),
        ("c", "d", False),
    ]


def test_csv_cells_have_the_types_of_their_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "prompt,completion,label,score,weight,complete,source,tools\n"
        '"[{""role"": ""user"", ""content"": ""hi""}]",[1] is a list,up,0.5,2,false,web,"[{""name"": ""f""}]"\n'
        "hi,,down,,,,,\n"
    )
    first, second = load(path).records
    assert first.prompt == ({"role": "user", "content": "hi"},)
    assert first.completions == (Completion("line2", "[1] is a list", True, 0.5, 2.0, complete=False),)
    assert (first.source, first.tools) == ("web", ({"name": "f"},))
    assert second == Record("line3", "hi", (Completion("line3", "", False),))


def test_csv_messages_in_pythons_notation_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,completion\n\"[{'role': 'user', 'content': 'hi'}]\",ho\n")
    with pytest.raises(DataError, match=r"a\.csv:2: prompt is written in Python's notation"):
        load(path)


def test_csv_rows_of_the_wrong_width_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,source\none,web\ntwo, and three,web\nfour\n")
    assert [(line, row.reason) for line, row in read_rows(path) if isinstance(row, Unreadable)] == [
        (3, "has 3 cells, but the header has 2 columns"),
        (4, "has 1 cells, but the header has 2 columns"),
    ]


# Several files


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder of two files, whose layouts and labels differ, and of what is no data."""
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(lines(ROWS))
    (folder / "b.csv").write_text("prompt,completion,score\n2 + 2?,four,0.5\n3 + 3?,six,1\n")
    (folder / "README.md").write_text("about")
    (folder / ".hidden.jsonl").write_text("{")
    return folder


@pytest.mark.parametrize("by", ["names", "paths", "patterns", "folder", "recursive pattern"])
def test_several_files_are_one_feedback(shards: Path, by: str) -> None:
    source: Any = {
        "names": [str(shards / "a.jsonl"), str(shards / "b.csv")],
        "paths": (shards / "a.jsonl", shards / "b.csv"),
        "patterns": [str(shards / "*.jsonl"), str(shards / "[b].csv")],
        "folder": shards,
        "recursive pattern": str(shards.parent / "**" / "*.[cj]s*"),
    }[by]
    feedback = load(source)
    first, second = feedback.records
    assert [(c.id, c.content) for c in first.completions] == [
        ("a/line1", "4"),
        ("a/line2", "5, or\n“six”"),
        ("b/line2", "four"),
    ]
    assert [(c.id, c.content, c.line) for c in second.completions] == [("b/line3", "six", 3)]
    assert (feedback.rows, feedback.format) == (4, "unpaired, scores")
    assert feedback.notes == ((f"files of {shards} not read: README.md",) if by == "folder" else ())


def test_problems_of_several_files_name_their_file(shards: Path, tmp_path: Path) -> None:
    (shards / "c.jsonl").write_bytes(lines([{**ROWS[0], "label": None}]))
    (shards / "d.jsonl").write_bytes(lines([*ROWS, {**ROWS[0], "label": "up"}]))
    with pytest.raises(DataError) as caught:
        load(shards)
    assert [(Path(str(e.path)).name, e.line) for e in caught.value.problems] == [("c.jsonl", 1), ("d.jsonl", 3)]
    assert f"{shards / 'd.jsonl'}:3: label 'up' belongs to" in str(caught.value)
    kept = load(shards, keep_going=True)
    assert sum(len(r.completions) for r in kept.records) == 6
    write_problems(kept.problems, tmp_path / "bad.jsonl")
    bad = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [(Path(row["file"]).name, row["line"]) for row in bad] == [("c.jsonl", 1), ("d.jsonl", 3)]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("1 1", "5 4", "label 1 stands among scores (5 on line 2 of {folder}/b.csv)"),
        ("5 4", "1 1", "label 1 stands among scores (5 on line 2 of {folder}/a.csv)"),
        ("1 0", "1 -1", "label '0': the data have both 0 and -1"),
    ],
)
def test_numbers_of_shards_are_one_column(tmp_path: Path, first: str, second: str, message: str) -> None:
    """The first rows of an export in stars may all have one star."""
    for name, labels in (("a", first), ("b", second)):
        rows = "".join(f"{name}{i},x,{label}\n" for i, label in enumerate(labels.split()))
        (tmp_path / f"{name}.csv").write_text(f"prompt,completion,label\n{rows}")
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    assert message.format(folder=tmp_path) in str(caught.value)
    kept = load(tmp_path, keep_going=True)
    assert not [c for r in kept.records for c in r.completions if c.label is not (first == "1 0" or None)]


def test_shards_have_their_own_words(tmp_path: Path) -> None:
    """As text of CSV, as booleans of JSON, as numbers, and beside another layout's scores."""
    (tmp_path / "a.csv").write_text("prompt,completion,label\na,b,true\na,c,false\n")
    (tmp_path / "b.jsonl").write_bytes(lines([{"prompt": "b", "completion": "c", "label": False}]))
    (tmp_path / "c.csv").write_text("prompt,completion,label\nc,d,1\nc,e,0\n")
    (tmp_path / "d.csv").write_text("prompt,completion,score\nd,e,5\n")
    labels = [c.label for r in load(tmp_path).records for c in r.completions]
    assert labels == [True, False, False, True, False, None]


def test_what_stands_for_no_file_or_for_one_twice(shards: Path) -> None:
    for source, message in (
        (str(shards / "*.parquet"), "no file matches this pattern"),
        ([shards / "a.jsonl", shards], "is named twice"),
        ([shards / "a.jsonl", shards / "z.jsonl"], "there is no such file"),
    ):
        with pytest.raises(DataError, match=message):
            load(source)


def test_a_folder_of_real_shards(shared: Path) -> None:
    assert len(load(shared / "cases" / "rows" / "shards").records) == 8


def test_datasets_folder_and_dataset_in_memory(tmp_path: Path) -> None:
    import datasets

    chats = [{"prompt": [{"role": "user", "content": row["prompt"]}], **row} for row in ROWS]
    chats = [{**row, "prompt": [{"role": "user", "content": "2 + 2?"}]} for row in chats]
    data = datasets.Dataset.from_list(chats)
    data.save_to_disk(str(tmp_path / "saved"))
    expected = load(chats).records
    assert load(data).records == expected
    assert load(tmp_path / "saved").records == expected
    assert load(data.select([1])).records[0].completions[0].content == ROWS[1]["completion"]


def test_arrow_nulls_inside_messages_are_absent_keys() -> None:
    import datasets

    rows = [
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho", "rating": "up"}]},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hm", "rating": "down"}]},
    ]
    (record,) = load(datasets.Dataset.from_list(rows)).records
    assert record.prompt == ({"role": "user", "content": "hi"},)
    assert [c.label for c in record.completions] == [True, False]


def test_arrow_nulls_in_a_label_column_are_still_errors(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", [*ROWS, {"prompt": "x", "completion": "y", "label": None}])
    with pytest.raises(DataError, match=r"a\.parquet:3: label is null"):
        load(tmp_path / "a.parquet")


def test_data_frame() -> None:
    pandas = pytest.importorskip("pandas")
    import numpy as np

    frame = pandas.DataFrame(ROWS)
    assert load(frame).records == load(ROWS).records
    frame["label"] = [1.0, 0.0]
    frame["weight"] = [2.0, float("nan")]
    frame["prompt"] = [np.array([{"role": "user", "content": "hi"}], dtype=object)] * 2
    (record,) = load(frame).records
    assert [(c.label, c.weight) for c in record.completions] == [(True, 2.0), (False, 1.0)]
    assert load(frame).path == "DataFrame in memory"


def test_rows_in_memory_are_copied() -> None:
    rows: Any = [{"prompt": [{"role": "user", "content": "hi"}], "completion": "ho", "tools": [{"name": "f"}]}]
    record = load(rows).records[0]
    rows[0]["prompt"][0]["content"] = rows[0]["tools"][0]["name"] = "changed"
    assert record.prompt == ({"role": "user", "content": "hi"},)
    assert record.tools == ({"name": "f"},)


def test_numpy_scalars_in_memory_are_pythons() -> None:
    import numpy as np

    rows = [{"prompt": "a", "completion": "b", "label": np.bool_(True), "weight": np.float32(0.5)}]
    assert load(rows).records[0].completions == (Completion("line1", "b", True, weight=0.5),)


def test_hub_name_reads_the_named_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[tuple[str, dict[str, Any]]] = []

    def load_dataset(name: str, **options: Any) -> datasets.Dataset:
        asked.append((name, options))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load("someone/thumbs").records == load(ROWS).records
    assert load("someone/thumbs:test").path == "someone/thumbs:test"
    assert asked == [("someone/thumbs", {"split": "train"}), ("someone/thumbs", {"split": "test"})]


def test_hub_name_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def offline(name: str, **options: Any) -> None:
        raise ConnectionError("Couldn't reach 'someone/thumbs' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(
        DataError, match=r"someone/thumbs: there is no such file.*ConnectionError: Couldn't reach.*local"
    ):
        load("someone/thumbs")


@pytest.mark.parametrize("name", ["data/thumbs.jsonl", "data/thumbs.json.gz", "/data/thumbs", "./thumbs", "thumbs"])
def test_what_looks_like_a_file_is_never_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("asked the Hub"))
    with pytest.raises(DataError, match="no such file or folder"):
        load(name)
    with pytest.raises(DataError, match="no such file or folder"):
        load(Path("owner/name"))


def test_reading_json_imports_neither_torch_nor_tables(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS))
    code = (
        "import sys; from prospect.feedback.load import load; from prospect.data.write import write;"
        "write(load('a.jsonl').records, 'b.jsonl');"
        "print(sorted({'torch', 'transformers', 'pandas', 'datasets', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": root}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


SHARED = {
    # file: (rows, layout, prompts, completions, label true, scored, pairs)
    "kto_gsm8k_solutions": (5268, "unpaired", 1319, 5268, 1994, 0, 0),
    "kto_tulu1_accept": (1266, "unpaired", 332, 1266, 989, 0, 0),
    "kto_oasst_emoji": (430, "unpaired", 205, 430, 334, 0, 0),
    "kto_llamafactory_demo": (300, "unpaired", 297, 300, 150, 0, 0),
    "pairs_hh_harmless_test": (2303, "paired", 2301, 4606, 0, 0, 2303),
    "pairs_tulu1": (710, "paired", 320, 1007, 0, 0, 710),
    "pairs_politeness_synthetic": (1094, "paired", 1069, 2188, 0, 0, 1094),
    "pairs_llamafactory_demo": (295, "paired", 295, 590, 0, 0, 295),
    "scores_cje_arena_judge": (2985, "scores", 1000, 2985, 0, 2985, 0),
    "sft_small": (1275, "prompt-completion", 1250, 1275, 0, 0, 0),
    "tinystories_1.7k": (1727, "text", 1727, 1727, 0, 0, 0),
}


@pytest.mark.parametrize("name", SHARED)
def test_real_files(shared: Path, name: str) -> None:
    rows, layout, prompts, completions, desirable, scored, pairs = SHARED[name]
    begun = time.perf_counter()
    feedback = load(shared / "data" / f"{name}.jsonl.gz")
    seconds = time.perf_counter() - begun
    every = [c for record in feedback.records for c in record.completions]
    assert (feedback.rows, feedback.format, len(feedback.records)) == (rows, layout, prompts)
    assert len(every) == completions
    assert sum(c.label is True for c in every) == desirable
    assert sum(c.label is False for c in every) == (rows - desirable if layout == "unpaired" else 0)
    assert sum(c.score is not None for c in every) == scored
    assert sum(len(record.pairs) for record in feedback.records) == pairs
    assert feedback.problems == ()
    assert feedback.notes == ()
    assert seconds < 5  # 0.2 s for the largest when alone on the machine


def test_the_table_of_real_files_is_whole(shared: Path) -> None:
    assert {path.name.removesuffix(".jsonl.gz") for path in (shared / "data").glob("*.gz")} == set(SHARED)
