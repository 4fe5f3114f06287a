"""Talk to a model in the terminal, or to two at once: `prospect chat`.

Every line of input is a user's message. The answer streams in as it is sampled; the whole conversation goes back
through the chat template with the next message. With two models each keeps its own conversation, so both stay
themselves.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest

from rich.live import Live
from rich.table import Table
from rich.text import Text

from prospect.data.options import SpecialTokens
from prospect.data.template import Template
from prospect.engine.generate import stream
from prospect.engine.policy import Policy
from prospect.errors import DataError
from prospect.feedback.messages import plain_text
from prospect.feedback.records import Message, Record
from prospect.training.console import Console, printable

HELP = "/reset forgets the conversation, /quit ends it (so does Ctrl-D); Ctrl-C stops an answer"


@dataclass(frozen=True, slots=True)
class Manner:
    """How answers are sampled; `system` is a message put before the conversation, `special_tokens` what a control token
    is that stands inside a message."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 512
    seed: int = 0
    system: str | None = None
    special_tokens: SpecialTokens = "text"


@dataclass
class Talk:
    """One model's side of a conversation. Without a chat template the model simply continues the text."""

    name: str
    policy: Policy
    manner: Manner
    history: list[Message] = field(default_factory=list)
    turns: int = 0
    forgets: bool = False
    """Whether the chat template has kept earlier turns from the model: it knows single questions only."""

    def reset(self) -> None:
        """Forget everything said."""
        self.history.clear()

    def answer(self, message: str) -> Iterator[str]:
        """The pieces of the answer to a user's message; what was said is remembered, even if the rest is not wanted.

        Raises DataError where the conversation leaves no room for an answer, or holds what no UTF-8 can.
        """
        plain_text(message, "the message")
        plain_text(self.manner.system or "", "the system message")
        self.history.append({"role": "user", "content": message})
        try:
            prompt = self._prompt(self.history)
            self.forgets = len(self.history) > 1 and prompt == self._prompt(self.history[-1:])
        except DataError:
            self.history.pop()
            raise
        said = ""
        try:
            for piece in stream(
                self.policy,
                prompt,
                temperature=self.manner.temperature,
                top_p=self.manner.top_p,
                max_new_tokens=self.manner.max_new_tokens,
                seed=self.manner.seed + self.turns,
            ):
                said += piece
                yield piece
        finally:
            self.turns += 1
            self.history.append({"role": "assistant", "content": said})

    def _prompt(self, history: list[Message]) -> list[int]:
        assert self.policy.tokenizer is not None
        template = Template(self.policy.tokenizer, special_tokens=self.manner.special_tokens)
        if template.tokenizer.chat_template is None:
            text = "".join(str(m["content"]) for m in history)
            ids = template.prompt_ids(Record("chat", text, ()))
        else:
            before = [] if self.manner.system is None else [{"role": "system", "content": self.manner.system}]
            ids = template.prompt_ids(Record("chat", (*before, *history), ()))
        if len(ids) >= self.policy.context:
            raise DataError(
                f"with this message the conversation has {len(ids)} tokens, {self.name} reads {self.policy.context}. "
                "Start again with /reset"
            )
        return ids


def converse(talks: list[Talk], lines: Iterable[str], console: Console) -> None:
    """Answer line after line until /quit or the end of the input."""
    if console.is_terminal:
        console.print(Text(f"{' and '.join(t.name for t in talks)}. {HELP}", style="dim"))
    noted = False
    for line in lines:
        message = line.strip()
        if message == "/quit":
            return
        if message == "/reset":
            for talk in talks:
                talk.reset()
            console.print("(a new conversation)", style="dim")
        elif message.startswith("/") and " " not in message:
            console.print(HELP, style="dim", highlight=False)
        elif message:
            try:
                _show(talks, message, console)
                if not noted and any(talk.forgets for talk in talks):
                    names = " and ".join(talk.name for talk in talks if talk.forgets)
                    console.print(
                        f"({names}: the chat template shows the last message only)", style="dim", markup=False
                    )
                    noted = True
            except DataError as error:
                console.print(Text(str(error), style="yellow"))


def _show(talks: list[Talk], message: str, console: Console) -> None:
    with suppress(KeyboardInterrupt):
        if len(talks) == 1:
            for piece in talks[0].answer(message):
                console.file.write(printable(piece))
                console.file.flush()
        else:
            _side_by_side(talks, message, console)
    if len(talks) == 1 or not console.is_terminal:  # rich ends a live table with a line break in a terminal only
        console.file.write("\n")


def _side_by_side(talks: list[Talk], message: str, console: Console) -> None:
    """The answers grow in turn, one column each."""
    said = [""] * len(talks)

    def table() -> Table:
        columns = Table(expand=True, show_lines=False)
        for talk in talks:
            columns.add_column(Text(talk.name), ratio=1, overflow="fold")
        columns.add_row(*map(Text, said))
        return columns

    with Live(table(), console=console, refresh_per_second=8) as live:
        for pieces in zip_longest(*(talk.answer(message) for talk in talks), fillvalue=""):
            said = [text + piece for text, piece in zip(said, pieces, strict=True)]
            live.update(table())


def typed(console: Console) -> Iterator[str]:
    """Lines from the keyboard, with editing and history, or from a pipe as they are; "\ufffd" stands for what is no
    text in the input's encoding."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    with suppress(ImportError):
        import readline  # noqa: F401  # importing it gives input() its editing and history
    while True:
        try:
            yield console.input("[bold]> [/]")
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
