"""Talking to a model: the conversation through the template, two models at once, and what is typed wrong."""

from __future__ import annotations

import io
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from prospect.cli import chat
from prospect.cli.main import main
from prospect.engine import generate
from prospect.engine.load import load
from tests.helpers.models import tiny
from tests.helpers.tokenizers import CHATML


def talk(lines: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """`prospect chat` with piped lines."""
    line = [sys.executable, "-m", "prospect.cli.main", "chat", *flags]
    return subprocess.run(line, input=lines, capture_output=True, text=True, check=False)


def test_chat_with_piped_lines(assistant: Path) -> None:
    flags = ("--model", str(assistant), "--max-new-tokens", "5", "--seed", "3")
    done = talk("hello\n/reset\nhello\n/quit\nnever\n", *flags)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "a new conversation" in done.stdout
    assert talk("hello\n/reset\nhello\n/quit\n", *flags).stdout == done.stdout, "same seed, same answers"


def test_chat_with_two_models(assistant: Path, tmp_path: Path) -> None:
    other = tiny(tmp_path / "other", CHATML, seed=1)
    done = talk("hello\n", "--model", str(assistant), "--compare", str(other), "--max-new-tokens", "5")
    assert done.returncode == 0, done.stderr
    assert "│" in done.stdout


def test_piped_bytes_that_are_no_text_end_no_chat(assistant: Path) -> None:
    line = [sys.executable, "-m", "prospect.cli.main", "chat", str(assistant), "--max-new-tokens", "2"]
    done = subprocess.run(line, input=b"caf\xe9\n/reset\n", capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"a new conversation" in done.stdout


def test_half_a_character_is_refused(assistant: Path, prompts: list[str]) -> None:
    talk = loaded(assistant)
    assert "lone surrogate" in conversation([talk], "caf\udce9").replace("\n", " ")
    assert (talk.history, prompts) == ([], [])
    assert "system message" in conversation([loaded(assistant, system="\udce9")], "hi")


def test_control_tokens_in_messages_are_what_the_run_says(assistant: Path, prompts: list[str]) -> None:
    """As text, <|im_end|> is several tokens; as a token it is one."""
    text, token = loaded(assistant), loaded(assistant, special_tokens="token")
    shorter, longer = (len(talk.prompt([{"role": "user", "content": "a<|im_end|>b"}])) for talk in (token, text))
    assert shorter < longer


def test_chat_refuses_bad_sampling(assistant: Path) -> None:
    assert main(["chat", "--model", str(assistant), "--temperature", "-1"]) == 2


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the models of `loaded` are asked; they answer "one", "two", "three"."""
    asked: list[str] = []

    def stream(policy: Any, prompt: list[int], **options: Any) -> Any:
        asked.append(policy.tokenizer.decode(prompt))
        yield from ("one", "two", "three")[len(asked) - 1 :][:1]

    monkeypatch.setattr(generate, "stream", stream)
    return asked


def loaded(folder: Path, **options: Any) -> chat.Conversation:
    return chat.Conversation(folder.name, load(folder, frozen=True), chat.ChatOptions(folder.name, **options))


def conversation(talks: list[chat.Conversation], *lines: str) -> str:
    console = Console(file=io.StringIO(), width=60)
    chat.converse(talks, lines, console)
    shown = console.file
    assert isinstance(shown, io.StringIO)
    return shown.getvalue()


def test_the_whole_conversation_goes_through_the_template(assistant: Path, prompts: list[str]) -> None:
    talks = [loaded(assistant, system="Be kind.")]
    shown = conversation(talks, "hi\n", "\n", "and?\n", "/reset", "/help", "again")
    system, head = "<|im_start|>system\nBe kind.<|im_end|>\n", "<|im_start|>assistant\n"
    first = f"{system}<|im_start|>user\nhi<|im_end|>\n{head}"
    assert prompts[0] == first
    assert prompts[1] == f"{first}one<|im_end|>\n<|im_start|>user\nand?<|im_end|>\n{head}"
    assert prompts[2] == f"{system}<|im_start|>user\nagain<|im_end|>\n{head}"
    assert [line for line in shown.splitlines() if line in ("one", "two", "three")] == ["one", "two", "three"]
    assert chat.HELP[:30] in shown


def test_a_model_without_template_continues_the_text(tmp_path: Path, prompts: list[str]) -> None:
    conversation([loaded(tiny(tmp_path / "plain", None, seed=0))], "Once upon")
    assert prompts == ["Once upon"]


def test_the_demos_assistant_is_asked_each_question_alone(prompts: list[str]) -> None:
    """It was schooled on single turns: the second question is put as the first, and chat says so once."""
    shipped = Path(str(files("prospect.demo") / "assistant"))
    shown = conversation([loaded(shipped)], "What is 1 + 2?", "Where is Ana?", "What is 1 + 2?")
    alone = [f"<|user|>{text}<|end|><|assistant|>" for text in ("What is 1 + 2?", "Where is Ana?", "What is 1 + 2?")]
    assert prompts == alone
    assert shown.count("shows the last message only") == 1


def test_a_conversation_that_is_too_long_is_said(tmp_path: Path, prompts: list[str]) -> None:
    talks = [loaded(tiny(tmp_path / "short", CHATML, seed=0, context=16))]
    assert "/reset" in conversation(talks, "word " * 50)
    assert talks[0].history == []
    assert prompts == []


def test_markup_in_answers_is_shown_as_it_is(assistant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "stream", lambda *a, **k: iter(["[bold]", "x[/bold]"]))
    assert "[bold]x[/bold]" in conversation([loaded(assistant), loaded(assistant)], "hi")


def test_tables_of_a_piped_comparison_stand_apart(assistant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "stream", lambda *a, **k: iter(["yes"]))
    lines = conversation([loaded(assistant), loaded(assistant)], "hi", "ho").splitlines()
    assert sum(line.startswith("┏") for line in lines) == sum(line.startswith("└") for line in lines) == 2


def test_a_message_that_the_template_refuses_is_not_remembered(assistant: Path, prompts: list[str]) -> None:
    talk = loaded(assistant)
    assert talk.policy.tokenizer is not None
    talk.policy.tokenizer.chat_template = "{{ raise_exception('no users here') }}"
    assert "no users here" in conversation([talk], "hi").replace("\n", "")
    assert talk.history == []


def test_ctrl_c_stops_the_answer_and_not_the_chat(assistant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(*args: Any, **options: Any) -> Any:
        yield "half an"
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "stream", stream)
    talks = [loaded(assistant)]
    shown = conversation(talks, "hi", "ho")
    assert shown.count("half an\n") == 2
    assert talks[0].history[1] == {"role": "assistant", "content": "half an"}
