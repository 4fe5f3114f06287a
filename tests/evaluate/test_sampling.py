"""Answers in a file: the same whatever the batch, the order and a kill, none twice, and nothing else is overwritten."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from prospect.cli.main import main
from prospect.engine import generate as engine
from prospect.engine.load import load
from prospect.engine.policy import Policy
from prospect.errors import ConfigError, DataError
from prospect.evaluate.sampling import Line, Settings, sample
from prospect.feedback.load import load_prompts

SETTINGS = Settings(max_new_tokens=6, seed=4)
QUESTIONS = ["Who?", "What is it?", "Where are we going?", "When?", "Why is the sky blue today?"]


def written(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return written(tmp_path / "prompts.jsonl", [{"id": f"q{k}", "prompt": text} for k, text in enumerate(QUESTIONS)])


def answers(lines: list[Line]) -> dict[tuple[str, int], list[int]]:
    return {(line["id"], line["sample"]): line["ids"] for line in lines}


def test_answers_depend_on_nothing_but_model_prompt_and_settings(
    assistant: Path, prompts: Path, tmp_path: Path
) -> None:
    policy, records = load(str(assistant), frozen=True, device="cpu", precision="fp32"), load_prompts(prompts)
    lines, over_long = sample(policy, records, tmp_path / "a.jsonl", SETTINGS, n=3, batch_size=64)
    assert over_long == []
    assert [(line["id"], line["sample"]) for line in lines] == [(f"q{i}", k) for i in range(5) for k in range(3)]
    assert len({tuple(ids) for ids in answers(lines).values()}) > 10
    other, _ = sample(policy, records[::-1][:3], tmp_path / "b.jsonl", SETTINGS, n=2, batch_size=1)
    assert len(other) == 6
    for key, ids in answers(other).items():
        assert ids == answers(lines)[key]
    again, _ = sample(policy, records, tmp_path / "c.jsonl", Settings(max_new_tokens=6, seed=5), n=3)
    assert answers(again) != answers(lines)


def test_a_line_says_how_it_came_about(assistant: Path, prompts: Path, tmp_path: Path) -> None:
    policy = load(str(assistant), frozen=True, device="cpu")
    sample(policy, load_prompts(prompts), tmp_path / "a.jsonl", SETTINGS)
    line = json.loads((tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()[1])
    assert (line["id"], line["prompt"], line["sample"]) == ("q1", "What is it?", 0)
    assert line["model_digest"] == policy.digest
    assert (line["temperature"], line["top_p"], line["max_new_tokens"], line["seed"]) == (1.0, 1.0, 6, 4)
    assert policy.tokenizer is not None
    ids = line["ids"][:-1] if line["complete"] else line["ids"]
    assert policy.tokenizer.decode(ids, skip_special_tokens=True) == line["completion"]


@pytest.mark.parametrize("torn", [b"", b'{"id": "q0", "pro'])
def test_a_file_is_completed_and_no_answer_drawn_twice(
    assistant: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: bytes
) -> None:
    policy, records = load(str(assistant), frozen=True, device="cpu"), load_prompts(prompts)
    whole = tmp_path / "whole.jsonl"
    sample(policy, records, whole, SETTINGS, n=2)
    lines = whole.read_bytes().splitlines(keepends=True)
    part = tmp_path / "part.jsonl"
    part.write_bytes(b"".join((lines[7], lines[2], lines[4])) + torn)
    drawn = []
    generate = engine.generate

    def counted(policy: Policy, prompts: Sequence[Sequence[int]], **options: Any) -> list[engine.Generated]:
        drawn.append(len(prompts))
        return generate(policy, prompts, **options)

    monkeypatch.setattr("prospect.evaluate.sampling.generate", counted)
    sample(policy, records, part, SETTINGS, n=2, batch_size=3)
    assert sum(drawn) == 7
    assert part.read_bytes() == whole.read_bytes()
    sample(policy, records, part, SETTINGS, n=2)
    assert sum(drawn) == 7, "a finished file is read, not drawn again"
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_killed_command_goes_on(assistant: Path, tmp_path: Path) -> None:
    """Killed after its first answers, the command ends with the file of one that was not."""
    many = written(tmp_path / "p.jsonl", [{"prompt": f"question {k}"} for k in range(60)])
    words = ["--model", str(assistant), "--prompts", str(many), "--max-new-tokens", "40", "--chat", "--seed", "1"]
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    assert main(["sample", *words, "--out", str(whole)]) == 0
    line = [sys.executable, "-m", "prospect", "sample", *words, "--out", str(part), "--batch-size", "1"]
    with subprocess.Popen(line, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not (part.exists() and part.read_bytes().count(b"\n") >= 3):
            time.sleep(0.01)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
    assert 3 <= part.read_bytes().count(b"\n") <= 60
    assert main(["sample", *words, "--out", str(part)]) == 0
    assert part.read_bytes() == whole.read_bytes()


def test_other_answers_are_never_overwritten(assistant: Path, prompts: Path, tmp_path: Path) -> None:
    policy, records, path = load(str(assistant), frozen=True, device="cpu"), load_prompts(prompts), tmp_path / "a.jsonl"
    sample(policy, records, path, SETTINGS, n=2)
    content = path.read_bytes()
    for settings, n, some, words in (
        (Settings(max_new_tokens=6, seed=4, temperature=0.5), 2, records, "with temperature 1.0, not 0.5"),
        (Settings(max_new_tokens=7, seed=4), 2, records, "max_new_tokens 6, not 7"),
        (SETTINGS, 1, records, "not asked for"),
        (SETTINGS, 2, records[:2], "not asked for"),
    ):
        with pytest.raises(ConfigError, match=words):
            sample(policy, some, path, settings, n=n)
        assert path.read_bytes() == content
    for text in ("notes of mine\n", '{"prompt": "x"}\n', "[]\n"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=r"a.jsonl:1: this is no answer"):
            sample(policy, records, path, SETTINGS)
        assert path.read_text(encoding="utf-8") == text


def test_prompts_without_room_are_left_out_and_named(assistant: Path, tmp_path: Path) -> None:
    policy = load(str(assistant), frozen=True, device="cpu")
    rows = written(tmp_path / "p.jsonl", [{"prompt": "short"}, {"id": "epic", "prompt": "long " * 100}])
    lines, over_long = sample(policy, load_prompts(rows), tmp_path / "a.jsonl", SETTINGS)
    assert ([line["id"] for line in lines], over_long) == (["line1"], ["epic"])
    with pytest.raises(DataError, match="no prompt leaves room"):
        sample(policy, load_prompts(rows)[1:], tmp_path / "b.jsonl", SETTINGS)


def test_prompts_come_from_any_file(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "topic": "x"}, {"prompt": [{"role": "user", "content": "b"}]}, {"prompt": "a"}]
    records = load_prompts(written(tmp_path / "prompts.jsonl", rows))
    assert [record.prompt for record in records] == ["a", ({"role": "user", "content": "b"},)]
    thumbs = [{"prompt": "a", "completion": "1", "label": True}, {"prompt": "b", "completion": "2", "label": False}]
    records = load_prompts(written(tmp_path / "thumbs.jsonl", thumbs))
    assert [(record.prompt, record.completions[0].label) for record in records] == [("a", True), ("b", False)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"prompt": "a"}\n{"prompt": ""}\n', "p.jsonl:2: .*line 2: prompt is blank"),
        ('{"prompt": "a"}\n{"prompt": 3}\n{"id": "x"}\n', "2 of 3 rows"),
        ('{"prompt": "a"}\nnot json\n', "p.jsonl:2"),
        ('{"question": "a"}\n{"question": "b"}\n', "question"),
        ("", "is empty"),
    ],
)
def test_bad_prompts_are_refused_with_their_line(
    tmp_path: Path, text: str, words: str, assistant: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=f"(?s){words}"):
        load_prompts(path)
    assert main(["sample", str(assistant), "--prompts", str(path), "--out", str(tmp_path / "a.jsonl")]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "a.jsonl").exists()


def test_the_command(assistant: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sample", str(assistant), "--prompts", str(prompts), "--out", str(tmp_path / "a.jsonl")]
    assert main([*words, "-n", "2", "--max-new-tokens", "3"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("10 answers to 5 prompts are in ")
    assert "add --chat" in shown.err
    assert "answers 10/10" in shown.err
    assert main([*words, "--temperature", "0", "-n", "2"]) == 2
    assert "leave out -n" in capsys.readouterr().err
