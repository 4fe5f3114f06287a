"""Several sources at once: names, patterns and folders with weights, mixed layouts, and what came from where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prospect.cli.main import main
from prospect.cli.options import together
from prospect.data.write import write
from prospect.feedback.load import describe_parts, load
from prospect.feedback.records import binary, examples, groups, scores, text
from prospect.feedback.sources import sources
from prospect.training.config import TrainConfig
from tests.helpers.datasets import SAMPLES
from tests.helpers.feedback import GOOD, error_of, save

THUMBS = [{"prompt": "a", "completion": c, "label": c == "1"} for c in ("1", "2")]
PAIR = {"prompt": "a", "chosen": "3", "rejected": "4"}
SCORES = [{"prompt": "b", "completion": c, "score": float(c)} for c in ("1", "2")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "thumbs.jsonl", *THUMBS)
    save(tmp_path / "pairs.jsonl", PAIR)
    save(tmp_path / "scores.jsonl", *SCORES)
    return tmp_path


def weights(rows: Any) -> list[float]:
    return [row.weight for row in rows]


def test_a_name_may_end_with_a_weight(folder: Path) -> None:
    listed, _ = sources([f"{folder}/thumbs.jsonl:0.5", f"{folder}/p*.jsonl:2", f"{folder}/scores.jsonl"])
    assert [(Path(str(one.source)).name, one.weight) for one in listed] == [
        ("thumbs.jsonl", 0.5),
        ("pairs.jsonl", 2.0),
        ("scores.jsonl", 1.0),
    ]
    assert [one.weight for one in sources(f"{folder}:1e-1")[0]] == [0.1] * 3
    assert sources("owner/name:0.5")[0][0][:2] == ("owner/name", 0.5)
    assert sources("owner/name:test")[0][0][:2] == ("owner/name:test", 1.0)
    assert sources("owner/name:test:3")[0][0][:2] == ("owner/name:test", 3.0)


@pytest.mark.parametrize("name", ["a:2", "log:10.jsonl", "b:0.5"])
def test_a_file_with_a_colon_in_its_name_is_that_file(tmp_path: Path, name: str) -> None:
    save(tmp_path / name, GOOD)
    assert sources(tmp_path / name)[0][0][:2] == (tmp_path / name, 1.0)
    assert len(load(tmp_path / name).records) == 1
    assert load(f"{tmp_path / name}:0.25").records[0].completions[0].source_weight == 0.25
    assert [one.weight for one in sources(f"{tmp_path}/*:{name.partition(':')[2]}")[0]] == [1.0]  # a pattern


@pytest.mark.parametrize("weight", ["0", "-1", "1e999", "-0.0"])
def test_a_weight_is_over_0_and_finite(folder: Path, weight: str) -> None:
    error = error_of(f"{folder}/thumbs.jsonl:{weight}")
    assert f"must be over 0 and finite, not {weight}" in error.message


def test_a_file_is_named_once_whatever_its_weight(folder: Path) -> None:
    assert "is named twice" in error_of([f"{folder}/thumbs.jsonl:0.5", f"{folder}/*.jsonl"]).message
    assert "no such file" in error_of(f"{folder}/thumb.jsonl:0.5").message


def test_the_weight_counts_once_in_every_view(folder: Path) -> None:
    """A row of a source of weight 0.5 counts half, also where two of its answers make it."""
    records = load([f"{folder}/thumbs.jsonl:0.5", f"{folder}/scores.jsonl:0.5"]).records
    first, second = records
    assert weights(binary(first)) == [0.5, 0.5]
    assert weights(examples(records, "pairs")) == [0.5, 0.5]  # thumbs of both kinds, and different scores
    assert weights(scores(second, 1.5)) == weights(groups(second, 1.5)) == [0.5, 0.5]
    assert weights(text(first)) == [0.5]
    (record,) = load(f"{folder}/pairs.jsonl:0.5").records
    assert weights(examples([record], "pairs")) == [0.5]
    assert weights(binary(record)) == [0.5, 0.5]


def test_a_weight_multiplies_that_of_the_row(tmp_path: Path) -> None:
    save(tmp_path / "a.jsonl", {**GOOD, "weight": 3}, {**PAIR, "weight": 3})
    save(tmp_path / "b.jsonl", {**PAIR, "weight": 3})
    assert weights(binary(load([f"{save(tmp_path / 'c.jsonl', {**GOOD, 'weight': 3})}:0.5"]).records[0])) == [1.5]
    assert weights(examples(load(f"{tmp_path}/b.jsonl:0.5").records, "pairs")) == [1.5]


def test_one_prompt_of_two_sources_is_one_record_and_each_answer_keeps_its_weight(folder: Path) -> None:
    save(folder / "more.jsonl", {"prompt": "a", "completion": "5", "label": False})
    (record,) = load([f"{folder}/thumbs.jsonl:4", f"{folder}/more.jsonl", f"{folder}/pairs.jsonl:0.5"]).records
    assert [(c.content, c.source_weight) for c in record.completions] == [
        *(("1", 4.0), ("2", 4.0), ("5", 1.0), ("3", 0.5), ("4", 0.5))
    ]
    assert weights(examples([record], "pairs")) == [0.5]
    thumbs = load([f"{folder}/thumbs.jsonl:4", f"{folder}/more.jsonl"]).records
    assert weights(examples(thumbs, "pairs")) == [4.0, 2.0]  # of two sources the geometric mean


def test_weights_survive_a_round_trip_and_change_the_digest(folder: Path) -> None:
    names = [f"{folder}/thumbs.jsonl:0.5", f"{folder}/pairs.jsonl"]
    feedback = load(names)
    write(feedback.records, folder / "out.jsonl")
    assert load(folder / "out.jsonl").records == feedback.records
    again = load(f"{folder}/out.jsonl:2").records[0].completions
    assert [c.source_weight for c in again] == [1.0, 1.0, 2.0, 2.0]
    assert feedback.digest != load([f"{folder}/thumbs.jsonl", f"{folder}/pairs.jsonl"]).digest


def test_what_came_from_where(folder: Path) -> None:
    save(folder / "bad.jsonl", {"prompt": "a", "completion": "x", "label": "maybe"}, *THUMBS)
    feedback = load([f"{folder}/bad.jsonl", f"{folder}/scores.jsonl:0.5"], keep_going=True)
    assert describe_parts(feedback.parts) == [
        f"from {folder}/bad.jsonl (unpaired): 3 rows, 1 of them wrong; 2 completions, 2 prompts, 1 desirable, "
        "1 undesirable",
        f"from {folder}/scores.jsonl (scores): 2 rows; 2 completions, 2 prompts, 2 scored; weight 0.5",
    ]
    assert sum(part["rows"] for part in feedback.parts) == feedback.rows == 5
    assert describe_parts(load(folder / "scores.jsonl").parts) == []  # one file needs no report


def test_of_very_many_files_the_first_are_reported(tmp_path: Path) -> None:
    for i in range(25):
        save(tmp_path / f"{i:02}.jsonl", {**GOOD, "prompt": str(i)})
    lines = describe_parts(load(tmp_path).parts)
    assert (len(lines), lines[-1]) == (21, "from 5 more files: 5 rows")


def test_files_that_are_one_export_have_one_weight(tmp_path: Path) -> None:
    from tests.helpers.datasets import OASST

    save(tmp_path / "a.jsonl", OASST[0])
    save(tmp_path / "b.jsonl", *OASST[1:])
    assert [c.source_weight for c in load(f"{tmp_path}:0.5").records[0].completions] == [0.5, 0.5]
    message = error_of([f"{tmp_path}/a.jsonl", f"{tmp_path}/b.jsonl:0.5"]).message
    assert "are one export and need one weight" in message


def test_layouts_may_be_mixed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(folder / "arena.jsonl", *SAMPLES["arena"][:2])
    arguments = ["convert", f"{folder}/*.jsonl", f"{folder}/thumbs.csv:2", str(folder / "out.jsonl.gz")]
    (folder / "thumbs.csv").write_text("prompt,completion,label\nc,1,up\n")
    assert main(arguments) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("from ")]
    assert [line.partition(": ")[0].replace(f"from {folder}/", "") for line in lines[:5]] == [
        *("arena.jsonl (arena)", "pairs.jsonl (paired)", "scores.jsonl (scores)", "thumbs.jsonl (unpaired)"),
        "thumbs.csv (unpaired)",
    ]
    assert lines[4].endswith("; weight 2")


def test_check_reports_the_sources(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    names = ["thumbs.jsonl:0.5", "pairs.jsonl"]
    main(["check", *names])
    printed = " ".join(capsys.readouterr().out.split())
    assert "files from thumbs.jsonl (unpaired): 2 rows; 2 completions, 2 prompts" in printed
    assert "weight 0.5 from pairs.jsonl (paired): 1 rows;" in printed
    main(["check", *names, "--json"])
    parts = json.loads(capsys.readouterr().out)["summary"]["sources"]
    assert [(part["format"], part["weight"], part["rows"]) for part in parts] == [
        ("unpaired", 0.5, 2),
        ("paired", 1, 1),
    ]


@pytest.mark.parametrize(
    "words",
    [
        ["--data", "a", "--model", "m", "--data", "b:2", "c"],
        ["--data=a", "--model", "m", "--data=b:2", "--data=c"],
        ["--data", "a", "b:2", "c", "--model", "m"],
    ],
)
def test_a_flag_may_be_given_several_times(words: list[str]) -> None:
    from prospect.cli.options import parse

    config = parse(TrainConfig, words, "train", TrainConfig())
    assert (config.data, config.model) == (("a", "b:2", "c"), "m")
    assert together(["--model", "m", "--model", "n"], TrainConfig) == ["--model", "m", "--model", "n"]
