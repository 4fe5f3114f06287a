"""What reaches a terminal: every command's text without the orders that stand in it, in any encoding."""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text

from prospect.cli import chat
from prospect.cli.main import main
from prospect.engine import generate
from prospect.engine.load import load
from prospect.training.console import Console, json_text, printable
from prospect.training.runlog import RunLog

CLIPBOARD = "\x1b]52;c;cm0gLXJmIH4=\x07"
TITLE, CLEAR, C1 = "\x1b]0;root\x07", "\x1b[2J\x1b[H", "\x9b31m\x9d52;c;eA==\x9c"
EVIL = f"a{CLIPBOARD}b{TITLE}c{CLEAR}d{C1}e\x08\rf\x7f"
ORDERS = set(map(chr, range(0x20))) - {"\n", "\t"} | set(map(chr, range(0x7F, 0xA0)))


def harmless(text: str) -> bool:
    return not ORDERS & set(text)


def test_printable_keeps_text_and_pictures_orders() -> None:
    assert printable("é\t漢字\n🙂 אב") == "é\t漢字\n🙂 אב"
    assert printable("\x1b]52;\x07\x7f\x9b") == "\u241b]52;\u2407\u2421\ufffd"
    assert harmless(printable("".join(map(chr, range(0x300)))))


def test_json_keeps_everything() -> None:
    values = {"text": EVIL + "\ud800"}
    assert harmless(json_text(values)) and json.loads(json_text(values)) == values


def test_a_console_sends_its_own_colours_and_no_others() -> None:
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, color_system="standard", width=200)
    console.print(Text(EVIL, style="red"))
    shown = terminal.getvalue()
    assert shown.startswith("\x1b[31ma\u241b]52;") and shown.count("\x1b") == 2


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    rows = [
        {"prompt": f"{EVIL} {i // 2}", "completion": f"{EVIL} {i}", "label": i % 2 == 0, f"more{CLIPBOARD}": EVIL}
        for i in range(6)
    ] + [{"prompt": "one", "completion": EVIL, "label": EVIL}]
    path = tmp_path / "evil.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("line", ["check {} --show 9", "check {} --json", "convert {} {}.out.jsonl", "recommend {}"])
def test_no_command_passes_orders_on(evil: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(line.replace("{}", str(evil)).split())
    shown = capsys.readouterr()
    assert shown.out + shown.err and harmless(shown.out) and harmless(shown.err)


def test_a_run_passes_no_orders_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path)
    log.say(EVIL)
    log.say(f"[/INST] [red]{EVIL}", warning=True)
    with log.bar("train", 1) as bar:
        bar(1, EVIL)
    shown = capsys.readouterr().err
    assert harmless(shown) and "[/INST] [red]a" in shown


@pytest.mark.parametrize("names", [["one"], ["[red]one", "two[/]"]])
def test_chat_shows_answers_as_they_are_and_obeys_none(
    assistant: Path, monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    def stream(*_: Any, **__: Any) -> Iterator[str]:
        yield "[/INST] \\[x\\] [bold]"
        yield from (EVIL[:3], EVIL[3:])  # an order cut in two

    monkeypatch.setattr(generate, "stream", stream)
    policy = load(assistant, frozen=True)
    terminal = io.StringIO()
    console = Console(file=terminal, width=200)
    chat.converse([chat.Conversation(name, policy, chat.ChatOptions(name)) for name in names], ["hi"], console)
    shown = terminal.getvalue()
    assert harmless(shown) and shown.count("[/INST] \\[x\\] [bold]a\u241b]52;") == len(names)
    assert len(names) == 1 or all(name in shown for name in names)


def test_an_ascii_terminal_is_enough(tmp_path: Path) -> None:
    rows = [{"prompt": f"Wärum {i // 2}?", "completion": f"Darüm {i} 漢", "label": i % 2 == 0} for i in range(6)]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = f"""
import sys
from prospect.cli.main import main
for line in ("check {path} --show 3", "check {path} --json", "losses", "losses kto", "recommend {path}",
             "convert {path} {tmp_path}/out.jsonl", "check {tmp_path}/nöwhere", "train --help", "check --help"):
    main(line.split())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr[-2000:]
    assert (done.stdout + done.stderr).isascii() and b"W\\xe4rum" in done.stdout


def test_there_is_one_door() -> None:
    """Nobody makes a console of rich's own."""
    package = Path(chat.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and path.name != "console.py":
                taken = {alias.name for alias in node.names} if node.module in ("rich", "rich.console") else set()
                assert "Console" not in taken and "print" not in taken, path
