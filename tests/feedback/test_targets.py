"""Scores of the reference's own answers, and target distributions, from every kind of file and back."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from prospect.cli.main import main
from prospect.data.write import write
from prospect.errors import DataError
from prospect.feedback.load import load

ROW: dict[str, Any] = {"prompt": "Is it?", "completion": "Yes", "label": True}
AIM = {"Yes": 0.7, "No": 0.3}


def test_from_flat_lines_and_lists_and_back(tmp_path: Path) -> None:
    flat = {**ROW, "target": AIM, "reference_scores": [1, 0.5, -2]}
    nested = {
        "prompt": "Or not?",
        "completions": [{"content": "No", "label": False, "target": AIM}, {"content": "Yes", "label": True}],
        "reference_scores": [0.25],
    }
    feedback = load([flat, nested])
    first, second = feedback.records
    assert first.reference_scores == (1.0, 0.5, -2.0) and second.reference_scores == (0.25,)
    assert [c.target for c in (*first.completions, *second.completions)] == [tuple(AIM.items()), tuple(AIM.items()), ()]
    write(feedback.records, tmp_path / "again.jsonl")
    again = load(tmp_path / "again.jsonl")
    assert again.records == feedback.records and again.digest == feedback.digest


@pytest.mark.parametrize("change", [{"target": {"Yes": 0.6, "No": 0.4}}, {"reference_scores": [1.5]}])
def test_what_they_say_is_part_of_the_feedback(change: dict[str, Any]) -> None:
    before = {**ROW, "target": AIM, "reference_scores": [1.0]}
    assert load([before]).digest != load([before | change]).digest


def test_csv_and_tables_hold_them_too(tmp_path: Path) -> None:
    """As JSON in a cell; in a table every row has the keys of all rows."""
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["prompt", "completion", "label", "target", "reference_scores"])
        lines.writerow(["a", "Yes", "true", json.dumps(AIM), "[1, 2.5]"])
        lines.writerow(["b", "No", "false", "", ""])
    first, second = load(tmp_path / "rows.csv").records
    assert (first.reference_scores, first.completions[0].target) == ((1.0, 2.5), tuple(AIM.items()))
    assert (second.reference_scores, second.completions[0].target) == ((), ())
    other = {"A": 0.5, "B": 0.5}
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list([{**ROW, "target": AIM}, {**ROW, "prompt": "b", "target": other}])
    aims = [record.completions[0].target for record in load(table).records]
    assert [dict(aim) for aim in aims] == [AIM, other]


def test_every_layout_reads_reference_scores() -> None:
    pair = {"prompt": "a", "chosen": "x", "rejected": "y", "reference_scores": [1, 2]}
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "score": 1.0}
    for row in (pair, {**chat, "reference_scores": [1, 2]}, {"text": "x", "reference_scores": [1, 2]}):
        assert load([row]).records[0].reference_scores == (1.0, 2.0)


def test_rows_of_one_prompt_with_other_reference_scores_stay_apart() -> None:
    rows = [{**ROW, "reference_scores": scores} for scores in ([1, 2], [1, 2], [3], None)]
    assert [len(record.completions) for record in load(rows).records] == [2, 1, 1]


def test_convert_keeps_them_apart_too(tmp_path: Path) -> None:
    """Which merges what it reads by a way of its own."""
    rows = [{**ROW, "reference_scores": scores, "target": AIM} for scores in ([1, 2], [3], [1, 2])]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["convert", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl")]) == 0
    assert load(tmp_path / "out.jsonl").digest == load(tmp_path / "in.jsonl").digest
    assert [record.reference_scores for record in load(tmp_path / "out.jsonl").records] == [(1.0, 2.0), (3.0,)]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("reference_scores", [], "must be a list of numbers, the scores of the reference model's own answers"),
        ("reference_scores", 0.5, "must be a list of numbers.*not float 0.5"),
        ("reference_scores", [1, "2"], r"reference_scores\[1\] must be a number, not str"),
        ("reference_scores", [True], r"reference_scores\[0\] must be a number, not bool"),
        ("reference_scores", [1, None], r"reference_scores\[1\] is null. Score that answer or leave it out"),
        ("reference_scores", [10**400], r"reference_scores\[0\] must be finite"),
        ("reference_scores", "[1, 2", "reference_scores is not valid JSON"),
        ("target", "Yes", "must be an object of answers and their probabilities.*not str 'Yes'.*--ignore target"),
        ("target", '{"Yes": 1', "target is not valid JSON"),
        ("target", {}, "needs two answers or more"),
        ("target", [0.5, 0.5], "must be an object of answers and their probabilities.*--ignore target"),
        ("target", {"Yes": 1.0}, "needs two answers or more"),
        ("target", {"Yes": 1.0, "No": None}, "needs two answers or more"),
        ("target", {"Yes": 0.7, "No": 0.2}, "must sum to 1, not 0.9. Divide each by their sum"),
        ("target", {"Yes": 1.5, "No": -0.5}, 'the probability of "Yes" in target must be from 0 to 1, not 1.5'),
        ("target", {"Yes": "0.5", "No": 0.5}, 'the probability of "Yes" in target must be a number'),
        ("target", {"\ud83d": 0.5, "No": 0.5}, "an answer of target has half of a character pair"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_what_is_refused(field: str, value: Any, message: str, nested: bool) -> None:
    """With the line and what to do, and the good rows can be had without it."""
    row: dict[str, Any] = {**ROW, "prompt": "other", field: value}
    if nested and field == "target":
        row = {"prompt": "other", "completions": [{"content": "Yes", "label": True, "target": value}]}
    elif nested:
        row = {"prompt": "other", "completions": [{"content": "Yes", "label": True}], field: value}
    with pytest.raises(DataError, match=message) as error:
        load([ROW, row])
    assert error.value.line == 2
    kept = load([ROW, row], keep_going=True)
    assert len(kept.records) == 1 and [problem.line for problem in kept.problems] == [2]


def test_a_target_beside_a_list_of_answers_belongs_to_none_of_them() -> None:
    with pytest.raises(DataError, match="target beside completions belongs to none of them"):
        load([{"prompt": "a", "completions": ["b"], "target": AIM}])


def test_old_log_probs_from_every_kind_of_line_and_back(tmp_path: Path) -> None:
    flat = {"prompt": "a", "completion": "x", "score": 0.5, "old_logp": -3.25}
    nested = {"prompt": "a", "completions": [{"content": "y", "score": 1, "old_logp": -1}, {"content": "z"}]}
    feedback = load([flat, nested])
    (record,) = feedback.records
    assert [c.old_logp for c in record.completions] == [-3.25, -1.0, None]
    write(feedback.records, tmp_path / "again.jsonl")
    assert load(tmp_path / "again.jsonl").records == feedback.records
    assert load([flat]).digest != load([flat | {"old_logp": -3.5}]).digest
    (tmp_path / "rows.csv").write_text("prompt,completion,score,old_logp\na,x,0.5,-3.25\na,y,1,\n")
    (record,) = load(tmp_path / "rows.csv").records
    assert [c.old_logp for c in record.completions] == [-3.25, None] and not load(tmp_path / "rows.csv").notes


@pytest.mark.parametrize(
    ("value", "message"),
    [(0.3, "old_logp must be 0 or less.*not 0.3"), ("-3", "old_logp must be a number"), (-float("inf"), "finite")],
)
def test_what_is_no_log_prob_is_refused(value: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load([{"prompt": "a", "completion": "x", "score": 0.5, "old_logp": value}])
