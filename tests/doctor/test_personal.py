"""Personal data: the finding's arithmetic with a stand-in for Presidio, and Presidio itself where it is installed."""

from __future__ import annotations

import json
import re
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from prospect.cli.main import main
from prospect.doctor.findings import diagnose
from prospect.doctor.personal import OVERLAP, PIECE, personal_data, presidio, shape
from prospect.evaluate.statistics import wilson
from prospect.feedback.records import Completion, Record


def addresses(text: str) -> list[tuple[str, int, int]]:
    return [("EMAIL_ADDRESS", m.start(), m.end()) for m in re.finditer(r"\w+@\w+\.\w+", text)]


def row(n: int, prompt: str, *answers: str, note: str = "") -> Record:
    done = tuple(Completion(f"c{n}.{i}", text, True, line=n, note=note) for i, text in enumerate(answers))
    return Record(f"r{n}", ({"role": "user", "content": prompt},), done)


def measured(records: list[Record], **options: Any) -> Any:
    (one,) = personal_data(records, addresses, **options)
    return one


def test_rows_with_it_in_prompt_answer_or_note_are_counted_and_masked() -> None:
    records = [
        row(1, "I am bob@home.org", "hi", "ho"),  # the prompt stands before both answers
        row(2, "who?", "ask eve@work.net or bob@home.org"),
        row(3, "what?", "nothing", note="from amy@play.com"),
        *(row(n, f"number {n}?", "no") for n in range(4, 10)),
    ]
    one = measured(records)
    assert one.data["rows"] == 4
    assert one.data["examined"] == one.data["total"] == 10
    assert one.data["kinds"] == {"EMAIL_ADDRESS": 4}
    assert one.data["ids"] == ["c1.0", "c1.1", "c2.0", "c3.0"]
    assert one.data["share"] == pytest.approx(0.4)
    assert one.data["low"] < 0.4 < one.data["high"]
    (finding,) = diagnose([one])
    assert finding.level == "warning"
    assert finding.message.startswith("4 of 10 (40 %) rows")
    assert finding.examples[0] == "line 1 (c1.0): EMAIL_ADDRESS xxx@xxxx.xxx"
    for datum in ("bob", "eve", "amy", "home.org"):
        assert datum not in json.dumps([finding.message, finding.examples, finding.data])


def test_none_is_no_proof_of_none() -> None:
    one = measured([row(n, f"number {n}?", "no") for n in range(30)])
    (finding,) = diagnose([one])
    assert finding.level == "ok"
    assert (one.data["low"], one.data["high"]) == pytest.approx((0, wilson(0, 30).high))


def test_a_large_file_is_sampled_and_says_so() -> None:
    records = [row(n, f"q{n:03}", f"a{n:03}@home.org") for n in range(100)]
    steps: list[int] = []
    one = measured(records, most=400, update=steps.append)
    assert one.data["examined"] == 400 // 17 == len(steps)
    assert one.data["total"] == 100
    assert one.data["ids"] != [f"c{n}.0" for n in range(23)], "a sample, not the beginning"
    assert "77 rows were not examined" in diagnose([one])[0].message


@pytest.mark.parametrize("start", [0, PIECE - 6, PIECE, 2 * (PIECE - OVERLAP), 3 * PIECE])
def test_long_texts_are_read_in_pieces_that_overlap(start: int) -> None:
    one = measured([row(1, "q", f"{'. ' * (start // 2)}bob@home.org{' .' * 500}")])
    assert one.data["rows"] == 1
    assert one.examples == ["line 1 (c1.0): EMAIL_ADDRESS xxx@xxxx.xxx"]


def test_a_shape_keeps_no_letter_and_no_digit() -> None:
    assert shape("+49 (30) 12-Ä٣") == "+## (##) ##-x#"


def test_without_the_extra_the_command_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    assert main(["check", str(tmp_path / "any.jsonl"), "--pii"]) == 2
    assert 'pip install "prospect-kto[pii]"' in " ".join(capsys.readouterr().err.split())


def test_presidio_recognizes_each_kind_and_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("presidio_analyzer")

    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("nothing may leave the machine")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)
    analyze = presidio()
    for text, kind in {
        "write to bob.smith@example.com": "EMAIL_ADDRESS",
        "call +44 20 7946 0958": "PHONE_NUMBER",
        "my phone is 212-555-5555": "PHONE_NUMBER",
        "4111 1111 1111 1111": "CREDIT_CARD",
        "DE89370400440532013000": "IBAN_CODE",
        "at 85.214.132.117": "IP_ADDRESS",
        "my ssn is 219-09-9999": "US_SSN",
        "1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2": "CRYPTO",
    }.items():
        assert kind in {name for name, *_ in analyze(text)}, text
    for text in (
        "2 + 2 = 4",
        "pi is 3.14159265, in 2012",
        "4111 1111 1111 1112",
        "numpy.array(a[::2])",
        "192.168.0.1",
        "a@b",
    ):
        assert list(analyze(text)) == [], text


def test_the_ids_of_the_check_are_those_that_convert_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("presidio_analyzer")
    answers = ["yes", "ask bob.smith@example.com", "no", "call +44 20 7946 0958", "later"]
    lines = [{"prompt": f"q{i}?", "completion": text, "label": i % 2 == 0} for i, text in enumerate(answers)]
    data, clean, ids = tmp_path / "data.jsonl", tmp_path / "clean.jsonl", tmp_path / "ids.txt"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def finding(path: Path) -> dict[str, Any]:
        main(["check", str(path), "--pii", "--json"])
        out = capsys.readouterr().out
        assert "bob.smith" not in json.dumps([f for f in json.loads(out)["findings"] if f["key"] == "personal_data"])
        return next(f for f in json.loads(out)["findings"] if f["key"] == "personal_data")

    result = finding(data)
    assert result["data"]["kinds"] == {"EMAIL_ADDRESS": 1, "PHONE_NUMBER": 1}
    ids.write_text("\n".join(result["data"]["ids"]))
    assert main(["convert", str(data), str(clean), "--without", str(ids)]) == 0
    capsys.readouterr()
    assert "bob.smith" not in clean.read_text()
    rest = finding(clean)
    assert rest["level"] == "ok"
    assert (rest["data"]["rows"], rest["data"]["total"], rest["data"]["ids"]) == (0, 3, [])
