"""Wrong input: each fault gets a DataError with path, line and what to do, and never takes good rows with it."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from prospect.errors import ConfigError, DataError
from prospect.feedback.formats import MOST_PROBLEMS, Feedback, load
from prospect.feedback.layouts import LAYOUTS
from prospect.feedback.rows import COMMON

GOOD = {"prompt": "2 + 2?", "completion": "4", "label": True}


def save(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def error_of(source: Any, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        load(source, **options)
    return caught.value


# The file as a whole


def test_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    save(tmp_path / "thumbs.jsonl", GOOD)
    error = error_of(tmp_path / "thumb.jsonl")
    assert error.path == tmp_path / "thumb.jsonl"
    assert str(error).endswith(f'no such file or folder. Did you mean "{tmp_path / "thumbs.jsonl"}"?')
    assert f"nor a folder {tmp_path / 'no'}" in str(error_of(str(tmp_path / "no" / "thumbs.jsonl")))


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", b""), ("b.json", b"\n \n"), ("c.csv", b""), ("d.gz", b"")])
def test_empty_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert str(error_of(tmp_path / name)) == f"{tmp_path / name}: is empty"


@pytest.mark.parametrize(
    ("name", "content"), [("a.json", "[]"), ("b.csv", "prompt,completion\n"), ("c.json", '{"data": []}')]
)
def test_file_without_rows(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert str(error_of(tmp_path / name)) == f"{tmp_path / name}: has no rows"


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.jsonl", GOOD)

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert str(error_of(path)) == f"{path}: cannot be read: Permission denied"


def test_text_in_place_of_a_path() -> None:
    assert "is no name of a file" in str(error_of("a question? " * 500))


def test_no_rows_in_memory() -> None:
    assert str(error_of([])) == "has no rows"


def test_a_folder_that_is_no_dataset(tmp_path: Path) -> None:
    assert "none that Dataset.save_to_disk wrote" in str(error_of(tmp_path))


def test_a_folder_of_several_splits(tmp_path: Path) -> None:
    import datasets

    data = datasets.Dataset.from_list([GOOD])
    both = datasets.DatasetDict({"train": data, "test": data})
    both.save_to_disk(str(tmp_path / "d"))
    assert str(error_of(tmp_path / "d")).endswith(f"name one of them: {tmp_path / 'd/test'}, {tmp_path / 'd/train'}")
    assert load(tmp_path / "d" / "test").rows == 1
    assert "Choose a split" in str(error_of(both))


def test_a_damaged_datasets_folder(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list([GOOD]).save_to_disk(str(tmp_path / "d"))
    (shard,) = (tmp_path / "d").glob("*.arrow")
    shard.write_bytes(b"not arrow at all")
    assert "is no readable datasets folder" in str(error_of(tmp_path / "d"))


@pytest.mark.parametrize("source", [42, {"prompt": "a"}, None, object()])
def test_what_is_no_source(source: Any) -> None:
    assert "feedback is a path, a list of dicts, a Dataset or a DataFrame" in str(error_of(source))


@pytest.mark.parametrize("keep", [20, 60])
def test_corrupt_gzip(tmp_path: Path, keep: int) -> None:
    packed = gzip.compress(random.Random(0).randbytes(400))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(packed[:keep])
    assert str(error_of(path)).startswith(f"{path}: is corrupt gzip (it ends too early)")
    path.write_bytes(packed[:keep] + b"\xff" * 8 + packed[keep + 8 :])
    assert str(error_of(path)).startswith(f"{path}: is corrupt gzip")
    path.write_bytes(b'{"prompt": "plain"}')
    assert str(error_of(path)).startswith(f"{path}: is corrupt gzip")


@pytest.mark.parametrize("content", [b"PAR1", b"PAR1 but then nothing PAR1", b"no parquet", b"PAR1" + bytes(100)])
def test_corrupt_parquet(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    assert str(error_of(path)).startswith(f"{path}: is no readable Parquet file: ")


def test_truncated_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([GOOD] * 100), path)
    path.write_bytes(path.read_bytes()[:-30])
    assert "is no readable Parquet file" in str(error_of(path))


def test_binary_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(range(256)))
    assert "is neither JSON nor JSON lines" in str(error_of(path))


@pytest.mark.parametrize("content", ["hello\nworld", "- prompt: a\n", "<html></html>"])
def test_text_that_is_no_json(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    error = error_of(tmp_path / "a.jsonl")
    assert "is neither JSON nor JSON lines" in error.message
    assert error.line == 1


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(GOOD).encode(codec))
    message = str(error_of(path))
    assert "is UTF-16" in message or "neither JSON" in message or "broken JSON" in message
    assert ("iconv" in message) == (codec == "utf-16")


def test_broken_json_array_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([GOOD, GOOD], indent=0).replace('"label": true\n}\n]', '"label": tru\n}\n]'))
    error = error_of(path)
    assert error.line == 10
    assert "broken JSON at column" in error.message


def test_broken_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,completion\na,b\na,"b\nc,d\n')
    error = error_of(path)
    assert error.line == 3
    assert "broken CSV" in error.message
    path.write_text("text,text\na,b\n")
    assert "has the column text twice" in str(error_of(path))


def test_wrong_encoding_of_a_table_or_array(tmp_path: Path) -> None:
    csv, array = tmp_path / "a.csv", tmp_path / "a.json"
    csv.write_bytes("text\nok\ncafé\n".encode("latin-1"))
    array.write_bytes('[\n{"text": "café"}]'.encode("latin-1"))
    assert "a.csv:3: is not UTF-8: byte 0xe9 at offset 11 of the file" in str(error_of(csv))
    assert "a.json:2: is not UTF-8: byte 0xe9 at offset 15 of the file" in str(error_of(array))
    assert "iconv -f LATIN1" in str(error_of(csv))


# Single lines


def test_broken_json_at_a_line(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", GOOD, '{"prompt": "a", "completion"', GOOD)
    error = error_of(path)
    assert (error.path, error.line) == (path, 2)
    assert str(error) == f"{path}:2: broken JSON at column 29: Expecting ':' delimiter"


def test_a_first_line_that_is_broken(tmp_path: Path) -> None:
    error = error_of(save(tmp_path / "a.jsonl", '{"prompt": }', GOOD))
    assert (error.line, error.message) == (1, "broken JSON at column 12: Expecting value")
    assert error_of(save(tmp_path / "b.jsonl", '{"prompt": }')).line == 1


def test_wrong_encoding_at_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"prompt": "caf\xe9", "completion": "b", "label": true}\n')
    error = error_of(path)
    offset = len(json.dumps(GOOD)) + 1 + 15
    assert error.line == 2
    assert f"is not UTF-8: byte 0xe9 at offset {offset} of the file" in error.message


@pytest.mark.parametrize("line", ["[1, 2]", '"text"', "42", "null", "true"])
def test_lines_that_are_no_objects(tmp_path: Path, line: str) -> None:
    error = error_of(save(tmp_path / "a.jsonl", GOOD, line))
    assert error.line == 2
    assert "must be an object" in error.message
    assert "must be a dict" in str(error_of([GOOD, json.loads(line)]))


def test_json_too_deep_to_read(tmp_path: Path) -> None:
    deep = '{"prompt": ' + "[" * 200_000 + "]" * 200_000 + "}"
    assert "nested too deeply" in error_of(save(tmp_path / "a.jsonl", GOOD, deep)).message
    (tmp_path / "b.json").write_text(f"[\n{deep}\n]")
    assert "nested too deeply" in str(error_of(tmp_path / "b.json"))


CHAT = [{"role": "user", "content": "hi"}]
BAD_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    # what is wrong: (a row of a file whose other rows are GOOD, what the message says)
    "unknown label": ({"label": "yes"}, 'label "yes" is no thumb. A file uses one of true/false, 1/0'),
    "null label": ({"label": None}, "label is null"),
    "a score as label": ({"label": 0.85}, 'label 0.85 is a score where a thumb should be. Name the column "score"'),
    "a grade as label": ({"label": 4}, "label 4 is a score"),
    "another vocabulary": (
        {"label": "up"},
        'label \'up\' belongs to "up"/"down", but this file\'s labels are true/false',
    ),
    "1 among booleans": ({"label": 1}, "label 1 belongs to the numbers 1/0/-1"),
    "blank prompt": ({"prompt": "  \n"}, "prompt is blank"),
    "empty chat prompt": ({"prompt": []}, "prompt is blank"),
    "blank chat prompt": ({"prompt": [{"role": "user", "content": " "}]}, "prompt is blank"),
    "only a system message": ({"prompt": [{"role": "system", "content": "Be kind."}]}, "prompt is blank"),
    "null prompt": ({"prompt": None}, "prompt is missing"),
    "number as prompt": ({"prompt": 4}, "prompt must be text or a list of messages, not int 4"),
    "object as prompt": ({"prompt": {"role": "user"}}, "prompt must be text or a list of messages, not dict"),
    "strings as chat": ({"prompt": ["hi", "ho"]}, "prompt must be a non-empty list of messages, not list ['hi', 'ho']"),
    "message without role": ({"prompt": [*CHAT, {"content": "x"}]}, "prompt: message 2 has no role"),
    "message without content": ({"prompt": [{"role": "user"}]}, "prompt: message 1 (user) has no content"),
    "number as content": ({"prompt": [{"role": "user", "content": 5}]}, "message 1 content must be text, not int 5"),
    "a function call without a name": (
        {"prompt": [*CHAT, {"from": "function_call", "value": "[{}]"}]},
        "message 2 is a function call and must name its function",
    ),
    "a picture": ({"prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "Prospect reads text only"),
    "unknown speaker": ({"prompt": [{"from": "humann", "value": "x"}]}, 'Did you mean "human"?'),
    "speaker of a wrong type": ({"prompt": [{"from": [], "value": "x"}]}, "no known speaker"),
    "null completion": ({"completion": None}, "completion is missing"),
    "number as completion": ({"completion": 42}, "completion must be text or one assistant message, not int 42"),
    "a user's completion": (
        {"prompt": CHAT, "completion": CHAT},
        'must be an assistant message, not one of role "user"',
    ),
    "two messages": ({"prompt": CHAT, "completion": CHAT * 2}, "completion has 2 messages"),
    "text prompt, chat answer": ({"completion": [{"role": "assistant", "content": "x"}]}, "Write both as text or both"),
    "negative weight": ({"weight": -1}, "weight must be 0 or more, not -1"),
    "infinite weight": ({"weight": float("inf")}, "weight must be finite"),
    "enormous weight": ({"weight": 10**400}, "weight must be finite"),
    "weight as text": ({"weight": "heavy"}, "weight must be a number, not str 'heavy'"),
    "weight as boolean": ({"weight": True}, "weight must be a number, not bool True"),
    "NaN score": ({"score": float("nan")}, "score must be finite"),
    "score as text": ({"score": "high"}, "score must be a number"),
    "complete as number": ({"complete": 1}, "complete must be true or false"),
    "tools as text": ({"tools": "search"}, "tools is not valid JSON"),
    "tools of a wrong type": ({"tools": {"name": "f"}}, "tools must be a list of function descriptions"),
    "template keywords": ({"chat_template_kwargs": [1]}, "chat_template_kwargs must be an object"),
    "id of a wrong type": ({"id": [1]}, "id must be text or a whole number"),
    "half a character": ({"completion": "\ud83d"}, "lone surrogate"),
    "half a character in tools": ({"tools": [{"name": "\ud83d"}]}, "tools cannot be written as JSON"),
    "half a character in a message": ({"prompt": [{**CHAT[0], "name": "\ud83d"}]}, "cannot be written as JSON"),
}


@pytest.mark.parametrize("what", BAD_ROWS)
def test_a_bad_row_is_named_and_the_others_are_kept(tmp_path: Path, what: str) -> None:
    fault, message = BAD_ROWS[what]
    bad = {"prompt": "3 + 3?", "completion": "6", "label": False, **fault}
    path = save(tmp_path / "a.jsonl", GOOD, {**GOOD, "completion": "5", "label": False}, bad, GOOD)
    error = error_of(path)
    assert (error.path, error.line) == (path, 3)
    assert message in error.message
    assert str(error).startswith(f"{path}:3")
    assert [(e.path, e.line, e.message) for e in error.problems] == [(path, 3, error.message)]

    kept = load(path, keep_going=True)
    assert [c.line for r in kept.records for c in r.completions] == [1, 2, 4]
    (problem,) = kept.problems
    assert (problem.path, problem.line, problem.message) == (path, 3, error.message)
    assert kept.rows == 4
    if what not in ("NaN score",):  # NaN equals nothing
        assert problem.raw == json.loads(json.dumps(bad))


def test_a_missing_label_is_no_silent_skip(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", GOOD, {"prompt": "a", "completion": "b"})
    assert "has no label, though other rows do" in error_of(path).message


def test_numbers_in_csv_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,completion,label,weight\na,b,1,heavy\n")
    assert str(error_of(path)) == f"{path}:2: weight must be a number, not str 'heavy'"


def test_a_missing_score(tmp_path: Path) -> None:
    path = save(
        tmp_path / "a.jsonl", {"prompt": "a", "completion": "b", "score": 1}, {"prompt": "a", "completion": "b"}
    )
    assert "score is missing, though other rows have one" in error_of(path).message


def test_zero_beside_minus_one(tmp_path: Path) -> None:
    rows = [{**GOOD, "label": label} for label in (1, 0, -1)]
    error = error_of(rows)
    assert [e.line for e in error.problems] == [2, 3]
    assert "nobody judged" in str(error)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": None}, "prompt is missing"),
        ({"prompt": " "}, "prompt is blank"),
        ({"completions": []}, "completions must be a non-empty list"),
        ({"completions": [5]}, "completions[0] must be an object with content"),
        ({"completions": [{"text": "x"}]}, 'completions[0] has an unknown key "text". Did you mean "content"?'),
        ({"completions": [{"content": "x", "lable": True}]}, 'unknown key "lable". Did you mean "label"?'),
        ({"completions": [{"label": True}]}, "needs content (text) or message"),
        ({"completions": [{"content": "x", "label": None}]}, "label is null"),
        ({"completions": ["x"], "pairs": [[0, 1]]}, "from 0 to 0, not int 1"),
        ({"completions": ["x"], "pairs": [[0, -1]]}, "from 0 to 0, not int -1"),
        ({"completions": ["x"], "pairs": [[0]]}, "a pair is [chosen, rejected]"),
        ({"completions": ["x", "y"], "pairs": {"chosen": 0}}, "pairs must be a list"),
        ({"completions": ["x", "y"], "pairs": [{"chosen": 0, "rejected": True}]}, "not bool True"),
        ({"completions": [{"message": {"role": "assistant", "tool_calls": [{}]}}]}, "both as text or both as messages"),
    ],
)
def test_prospect_lines(row: dict[str, Any], message: str) -> None:
    error = error_of([{"prompt": "a", "completions": ["x"]}, {"prompt": "b", "completions": ["x"], **row}])
    assert error.line == 2
    assert message in error.message


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "a", "rejected": "b"}, "has no prompt"),
        ({"prompt": "p", "chosen": "a", "rejected": None}, "rejected is missing"),
        ({"prompt": "p", "chosen": "a", "rejected": [{}]}, "prompt is text but rejected is a chat message"),
        ({"prompt": CHAT, "chosen": "a", "rejected": 3}, "rejected must be text or one assistant message"),
        (
            {"chosen": CHAT, "rejected": [{"role": "user", "content": "other"}]},
            "what chosen and rejected share is blank",
        ),
        ({"prompt": "p", "chosen": CHAT * 2, "rejected": CHAT * 2}, "Write both as text or both as messages"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "c"}, "rejected must be a transcript"),
        ({"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: a"}, "does not end with the assistant's turn"),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: z\n\nAssistant: b"},
            "differ before their last answer",
        ),
        ({"conversations": [{"from": "human", "value": "a"}], "kto_tag": True}, "prompt is blank"),
        ({"messages": CHAT, "label": True}, "prompt is blank"),
        ({"messages": [*CHAT, *CHAT], "label": True}, 'must be an assistant message, not one of role "user"'),
        ({"messages": [{**CHAT[0], "rating": "up"}]}, 'must be an assistant message, not one of role "user"'),
        ({"messages": [{"role": "assistant", "content": "x", "rating": "up"}]}, "its prompt is blank"),
        ({"messages": [*CHAT, {**CHAT[0], "rating": "up"}]}, 'must be an assistant message, not one of role "user"'),
        ({"messages": [*CHAT, {"role": "assistant", "content": "x", "rating": None}]}, "label is null"),
        ({"messages": [*CHAT, {"role": "assistant", "content": "x", "rating": 4}]}, "label 4 is a score"),
        ({"messages": [*CHAT, {"role": "assistant", "content": "x", "rating": 1, "label": 1}]}, "label and a rating"),
        (
            {"messages": [*CHAT, {"role": "assistant", "content": "x", "rating": 1}], "label": 1},
            "rows and single turns",
        ),
        ({"messages": []}, "messages must be a non-empty list"),
        ({"instruction": " ", "output": "x", "kto_tag": True}, "instruction is blank"),
        ({"instruction": "a", "output": "x", "kto_tag": True, "label": 1}, "which one is the thumb?"),
        ({"instruction": "a", "output": "x", "history": ["b"]}, "history must be a list of [question, answer]"),
        ({"text": " "}, "text is blank"),
        ({"text": 5}, "text must be text, not int 5"),
    ],
)
def test_rows_of_the_other_layouts(row: dict[str, Any], message: str) -> None:
    error = error_of([row])
    assert error.line == 1
    assert message in error.message


# Columns


def test_unknown_columns_name_the_layouts_and_the_closest(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", {"prompt": "a", "answer": "b", "label": True})
    message = str(error_of(path))
    assert message.startswith(f'{path}: the columns "answer", "label", "prompt" fit no known layout.')
    assert 'Closest is unpaired, which also needs "completion"' in message
    assert "alpaca (instruction + output or chosen)" in message


def test_misspelt_column_that_is_needed() -> None:
    message = str(error_of([{"promt": "a", "completion": "b", "label": True}]))
    assert 'Closest is unpaired, which also needs "prompt" (is it "promt"?)' in message


@pytest.mark.parametrize(
    ("column", "meant"),
    [("wieght", "weight"), ("lable", "label"), ("Label", "label"), ("chat_template_kwarg", "chat_template_kwargs")],
)
def test_misspelt_optional_column(column: str, meant: str) -> None:
    rows = [{"prompt": "a", "completions": ["b"], column: 1}]
    assert f'unknown column "{column}" in the layout prospect. Did you mean "{meant}"?' in str(error_of(rows))


@pytest.mark.parametrize("column", ["rating", "thumbs", "feedback", "reward", "kto_tag", "labels", "scores"])
def test_a_judgement_that_would_not_be_read(column: str) -> None:
    message = str(error_of([{"prompt": "a", "completion": "b", column: 1}]))
    assert f'the column "{column}" looks like a judgement' in message
    assert 'a column named "label" (thumbs) or "score"' in message
    assert "looks like a judgement" in str(error_of([{"text": "a", "label": 1}]))
    assert "Name it label or reward" in str(error_of([{"prompt": "a", "output": "b", "score": 1}]))


def test_other_columns_are_noted() -> None:
    assert load([{**GOOD, "model": "m", "margin": 2}]).notes == ("columns not read: margin, model",)


def test_rows_without_columns() -> None:
    assert "the rows have no columns" in str(error_of([{}]))


def test_forced_format_that_does_not_fit() -> None:
    message = str(error_of([GOOD], format="paired"))
    assert (
        message
        == 'the layout paired needs the column "chosen", "rejected", but the file has "completion", "label", "prompt"'
    )


def test_unknown_format() -> None:
    with pytest.raises(ConfigError, match=r'unknown format "unpared"\. Did you mean "unpaired"\?'):
        load([GOOD], format="unpared")


# Many at once


def test_problems_are_collected(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", GOOD, {**GOOD, "label": None, "id": "q7"}, "{", GOOD, {**GOOD, "label": "up"})
    error = error_of(path)
    assert [(e.line, e.row) for e in error.problems] == [(2, "q7"), (3, None), (5, None)]
    assert (error.path, error.line) == (path, None)
    first, *listed, last = str(error).splitlines()
    assert first == f"{path}: 3 problems:"
    assert last == f"To go on with the good rows: prospect check {path} --keep-going GOOD.jsonl"
    assert [line.split(":")[0] for line in listed] == ["  line 2 (q7)", "  line 3", "  line 5"]


def test_at_most_twenty_are_collected_and_all_are_kept_when_going_on(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", GOOD, *[{**GOOD, "label": None}] * 30, GOOD)
    error = error_of(path)
    assert [e.line for e in error.problems] == list(range(2, 2 + MOST_PROBLEMS))
    assert f"{path}: the first 20 problems:" in str(error)
    kept = load(path, keep_going=True)
    assert [p.line for p in kept.problems] == list(range(2, 32))
    assert [c.line for c in kept.records[0].completions] == [1, 32]


def test_going_on_leaves_out_the_minority_vocabulary() -> None:
    rows = [{**GOOD, "label": label} for label in ("good", True, False, True)]
    kept = load(rows, keep_going=True)
    assert [p.line for p in kept.problems] == [1]
    assert [c.label for c in kept.records[0].completions] == [True, False, True]


def test_going_on_without_a_good_row() -> None:
    kept = load([{**GOOD, "label": None}], keep_going=True)
    assert kept.records == ()
    assert len(kept.problems) == 1


def test_a_file_of_nothing_readable(tmp_path: Path) -> None:
    error = error_of(save(tmp_path / "a.jsonl", "{a", "{b"), keep_going=True)
    assert [e.line for e in error.problems] == [1, 2]


def test_errors_in_memory_name_the_row() -> None:
    assert str(error_of([GOOD, {**GOOD, "weight": -1}])).startswith("row 2: weight must be")


# Anything at all


def test_random_damage_never_gives_another_error(tmp_path: Path) -> None:
    """Five hundred mutilated files: each loads, or fails with a DataError."""
    dice = random.Random(0)
    path = tmp_path / "a.jsonl"
    samples = [
        json.dumps(GOOD).encode() + b"\n" + json.dumps({**GOOD, "weight": 2, "tools": [{"name": "f"}]}).encode(),
        json.dumps([{"messages": [*CHAT, {"role": "assistant", "content": "x", "rating": "up"}]}] * 2).encode(),
        json.dumps({"prompt": CHAT, "completions": [{"content": "x", "label": 1}, "y"], "pairs": [[0, 1]]}).encode(),
        b'prompt,completion,label\na,"b, c",1\nd,e,0\n',
        gzip.compress(json.dumps(GOOD).encode()),
    ]
    edits = (b"", b"null", b"[", b"1", b'"', b"-1", b"\xff", b" ", b"e", b"\n")
    loaded = 0
    for _ in range(500):
        data = bytearray(dice.choice(samples))
        at = dice.randrange(len(data))
        data[at : at + dice.randint(0, 3)] = dice.choice(edits)
        path.write_bytes(bytes(data))
        feedback, message = outcome(path)
        loaded += feedback is not None
        assert message.startswith("" if feedback else str(path))
    assert 25 < loaded < 475  # both happened often, so the damage was of the right size


def outcome(path: Path) -> tuple[Feedback | None, str]:
    """What loading gives: feedback, or the message of a DataError."""
    try:
        return load(path), ""
    except DataError as error:
        return None, str(error)


WILD: tuple[Any, ...] = (
    None,
    True,
    0,
    -3,
    1.5,
    "",
    "x",
    [],
    {},
    [None],
    [[]],
    [{}],
    {"role": []},
    [{"role": "user"}],
    [{"role": 1, "content": 2}],
)


def test_any_value_in_any_column_is_a_data_error_or_fine() -> None:
    good = bad = 0
    for name, layout in LAYOUTS.items():
        columns = dict.fromkeys((*layout.needs, *layout.either, *layout.reads))
        for column in (*columns, *COMMON):
            for value in WILD:
                for base in ("x", CHAT, [*CHAT, {"role": "assistant", "content": "x"}], ["x"]):
                    row = {**dict.fromkeys((*layout.needs, *layout.either), base), column: value}
                    held = load([row], format=name, keep_going=True)
                    assert held.rows == 1
                    good, bad = good + (not held.problems), bad + len(held.problems)
    assert good > 500
    assert bad > 1000
