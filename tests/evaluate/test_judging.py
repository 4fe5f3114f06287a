"""Judgements: a user's function is called once per answer, all it said is kept, and its failures cost nothing."""

from __future__ import annotations

import json
from pathlib import Path
from types import FunctionType
from typing import cast

import pytest

from prospect.errors import ConfigError, RunError
from prospect.evaluate.judging import FunctionJudge, judge

JUDGE = """
calls = []

def score(prompt, answer):
    calls.append(answer)
    if answer == "bad":
        raise KeyError("no such word")
    if answer in SAYS:
        return SAYS[answer]
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return len(answer) / len(text)

SAYS = {"nan": float("nan"), "text": "12", "none": None, "true": True, "vast": 10**400}
"""


@pytest.fixture
def by(tmp_path: Path) -> FunctionJudge:
    (tmp_path / "judge.py").write_text(JUDGE, encoding="utf-8")
    return FunctionJudge.load(f"{tmp_path / 'judge.py'}:score")


def calls(by: FunctionJudge) -> list[str]:
    made: list[str] = cast(FunctionType, by.score).__globals__["calls"]
    return made


def test_every_judgement_is_kept_and_none_made_twice(by: FunctionJudge, tmp_path: Path) -> None:
    path = tmp_path / "out" / "judgements.jsonl"
    chat = ({"role": "user", "content": "four"},)
    assert judge(by, [("ab", "a"), (chat, "ab"), ("ab", "a")], path).tolist() == [0.5, 0.5, 0.5]
    assert calls(by) == ["a", "ab"]
    first, second = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    assert (first["judge"], first["order"], first["prompt"], first["answer"]) == (by.name, "alone", "ab", "a")
    assert second["prompt"] == [{"role": "user", "content": "four"}]
    assert first["at"].endswith("+00:00")
    assert first["seconds"] >= 0
    with path.open("ab") as file:
        file.write(b'{"key": "torn')
    assert judge(by, [("ab", "abcd"), ("ab", "a")], path).tolist() == [2, 0.5]
    assert calls(by) == ["a", "ab", "abcd"]
    assert len(path.read_text(encoding="utf-8").splitlines()) == 3
    assert [part.name for part in path.parent.iterdir()] == ["judgements.jsonl"]


def test_another_judge_of_that_name_judges_anew(by: FunctionJudge, tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    judge(by, [("ab", "a")], path)
    other = FunctionJudge(by.name, "another digest", lambda prompt, answer: 7)
    assert judge(other, [("ab", "a")], path).tolist() == [7]
    assert judge(by, [("ab", "a")], path).tolist() == [0.5]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("bad", "KeyError.*no such word"),
        ("nan", "gave nan"),
        ("text", "gave '12'"),
        ("none", "gave None"),
        ("vast", "gave"),
    ],
)
def test_a_judge_that_fails_loses_nothing(by: FunctionJudge, tmp_path: Path, answer: str, words: str) -> None:
    path = tmp_path / "j.jsonl"
    with pytest.raises(RunError, match=f"(?s){words}.*prompt 'ab'|'{answer}'.*prompt 'ab'.*{words}"):
        judge(by, [("ab", "true"), ("ab", answer)], path)
    assert judge(by, [("ab", "true")], path).tolist() == [1]
    assert calls(by) == ["true", answer]


def test_what_is_no_judge_is_refused(by: FunctionJudge, tmp_path: Path) -> None:
    for name, words in (
        ("judge", "as judge.py:score"),
        (f"{tmp_path}/judge.py:scare", 'no function "scare"'),
        (f"{tmp_path}/juge.py:score", "no file"),
    ):
        with pytest.raises(ConfigError, match=words):
            FunctionJudge.load(name)
    path = tmp_path / "notes.txt"
    path.write_text("mine\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"notes.txt:1: this is no judgement"):
        judge(by, [("a", "b")], path)
    assert path.read_text(encoding="utf-8") == "mine\n"
