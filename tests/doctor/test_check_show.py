"""What people see of the doctor: findings, rows with their tokens, and the files of good and bad rows."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from prospect.cli.main import main
from prospect.doctor.check import check, split_rows
from prospect.doctor.show import pieces, print_findings, show_rows
from prospect.errors import DataError
from prospect.feedback.load import load
from prospect.feedback.records import Completion, Pair, Record
from tests.helpers.tokenizers import CHATML, build_trees, byte_level, llama_like


def thumb(n: int, prompt: str, said: str, label: bool, weight: float = 1.0) -> Record:
    return Record(
        f"r{n}", ({"role": "user", "content": prompt},), (Completion(f"c{n}", said, label, None, weight, line=n),)
    )


def shown(print_: Any, width: int = 200) -> str:
    file = io.StringIO()
    print_(Console(file=file, width=width, force_terminal=False))
    return file.getvalue()


def test_findings_for_people() -> None:
    records = [thumb(i, f"[bold]question {i}?", f"answer {i}", i < 8) for i in range(63)]
    out = shown(lambda c: print_findings(check(records), c))
    for part in (
        "63 completions to 63 prompts",
        "8 desirable, 55 undesirable",
        "desirable_weight 6.88",
        "1 ██",
        "balance:",
    ):
        assert part in out
    assert "nothing to repair" in shown(lambda c: print_findings(check(records[4:12]), c))
    assert "1 error" in shown(lambda c: print_findings(check([]), c))


def test_rows_are_shown_with_their_tokens() -> None:
    tokenizer = byte_level(CHATML)
    records = [thumb(1, "Is [it] so?", "the boat\nit é", True), thumb(2, "b?", "never " * 40, False, weight=2.0)]
    trees, _ = build_trees(records, tokenizer, max_length=40)
    out = shown(lambda c: show_rows(records, 5, c, trees=trees, tokenizer=tokenizer))
    assert "line 1 (c1)  desirable" in out
    assert "<|im_start|>user\nIs [it] so?<|im_end|>\n<|im_start|>assistant" in out
    said = out.split("assistant\n")[1].split("line 2")[0]
    assert said.replace("|", "").split() == ["the", "boat↵", "it", "é<im_end>"]
    assert "weight 2" in out
    assert "[dropped] never" in out
    plain = shown(lambda c: show_rows(records, 1, c))
    assert "Is [it] so?" in plain
    assert "c2" not in plain


def test_scores_pairs_and_what_was_cut_off_are_shown() -> None:
    done = (
        Completion("a", "one", score=0.5),
        Completion("b", "two", complete=False, target=(("one", 0.75), ("two", 0.25))),
        Completion("c", "three"),
    )
    records = [Record("r", "count", done, (Pair(0, 1),))]
    records += [Record(f"r{n}", f"{n}", tuple(Completion(f"{n}.{i}", f"{i}") for i in range(n))) for n in range(4, 14)]
    out = shown(lambda c: show_rows(records, 3, c))
    for part in ("a  desirable  score 0.5", 'b  undesirable  cut off  target "one" 0.75, "two" 0.25', "c  no label"):
        assert part in out
    out = shown(lambda c: print_findings(check(records), c))
    for part in ("scored", "pairs", "11 or more █", "incomplete:", "\n          b\n"):
        assert part in out


@pytest.mark.parametrize("build", [byte_level, llama_like])
def test_pieces_lose_nothing(build: Any) -> None:
    tokenizer = build()
    for text in ("the boat: é 中😀 a", "Sorry, I cannot", ""):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        split = list(pieces(ids, tokenizer))
        assert "".join(split) == tokenizer.decode(ids)
        assert not any("\ufffd" in piece for piece in split)


def test_bad_rows_are_an_error_and_can_be_split_off(tmp_path: Path) -> None:
    file = tmp_path / "thumbs.jsonl"
    rows = [
        {"prompt": f"{a}?", "completion": a, "label": i % 2 == 0}
        for i, a in enumerate(["yes", "no", "maybe", "never", "always"])
    ]
    rows[3]["label"] = "perhaps"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(DataError):
        load(file)
    feedback = load(file, keep_going=True)
    (bad,) = [f for f in check(feedback).findings if f.key == "bad_rows"]
    assert (bad.level, bad.data) == ("error", {"rows": 1})
    assert bad.examples[0].startswith("line 4: ")
    good, rest = split_rows(feedback, tmp_path / "good.jsonl")
    assert rest == tmp_path / "good.bad.jsonl"
    again = load(good)
    assert again.records == feedback.records
    assert "bad_rows" not in [f.key for f in check(again).findings]
    (reason,) = [json.loads(line) for line in rest.read_text(encoding="utf-8").splitlines()]
    assert (reason["line"], reason["row"]["label"]) == (4, "perhaps")
    assert split_rows(again, tmp_path / "all.jsonl.gz") == (tmp_path / "all.jsonl.gz", None)


def test_without_a_good_row_no_file_of_good_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "a", "completion": "b", "label": "maybe"}\n' * 2)
    assert main(["check", str(file), "--keep-going", str(tmp_path / "good.jsonl")]) == 2
    assert f"no good row; bad rows with their reasons: {tmp_path / 'good.bad.jsonl'}" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "good.bad.jsonl"}
