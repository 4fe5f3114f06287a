"""`prospect chat`: talk to a model in the terminal, or to two at once.

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
from typing import TYPE_CHECKING, Literal

from rich.live import Live
from rich.table import Table
from rich.text import Text

from prospect.cli.options import as_in_run, model_first, parse, quiet_loading
from prospect.data.tokens import Encoder
from prospect.errors import ConfigError, DataError
from prospect.feedback.messages import plain_text
from prospect.feedback.records import Message, Record
from prospect.training.console import Console, printable

if TYPE_CHECKING:
    from prospect.engine.policy import Policy

HELP = "/reset forgets the conversation, /quit ends it (so does Ctrl-D); Ctrl-C stops an answer"


@dataclass(frozen=True)
class ChatOptions:
    """Talk to a model in the terminal. /reset forgets the conversation, /quit ends it."""

    model: str
    """The model to talk to: a run folder, a model's or adapter's, or a Hub name. The word --model may be left out."""
    compare: str | None = None
    """A second model; its answers stand beside the first one's. start: the model that the run started from."""
    system: str | None = None
    """A system message before the conversation."""
    temperature: float = 1.0
    """1 samples from the model as it is; 0 always takes the likeliest token."""
    top_p: float = 1.0
    """Sample from the fewest tokens that hold this much probability."""
    max_new_tokens: int = 512
    """Longest answer in tokens."""
    seed: int = 0
    """Same seed, same answers."""
    chat_template: str | None = None
    """A Jinja file, or "plain", for a model without a chat template."""
    special_tokens: Literal["text", "token"] | None = None
    """What a control token is that stands inside a message: text, or the token. Default: as in the run, else text."""
    precision: Literal["auto", "bf16", "fp32", "fp64"] = "auto"
    """auto is bf16 where the hardware has it."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.max_new_tokens < 1:
            raise ConfigError(
                "expected --temperature of 0 or more, --top-p above 0 and up to 1, --max-new-tokens of 1 or more"
            )


def chat(arguments: list[str]) -> int:
    """`prospect chat`"""
    options = parse(ChatOptions, model_first(arguments), "chat")
    from prospect.engine.load import load
    from prospect.training import run_folder

    options, run = as_in_run(options, "chat_template", "special_tokens")
    compare = options.compare
    if compare == "start":
        compare = run.reference
        if compare is None:
            raise ConfigError(f"--compare start needs a run folder, and {options.model} is none: name the second model")
    names = [run.model] if compare is None else [run.model, run_folder.model_of_run(compare).model]
    quiet_loading()
    conversations = []
    for name in names:
        policy = load(
            name,
            precision=options.precision,
            device=options.device,
            chat_template=options.chat_template,
            frozen=True,
        )
        conversations.append(Conversation(name, policy, options))
    console = Console()
    converse(conversations, input_lines(console), console)
    return 0


@dataclass
class Conversation:
    """One model's side of a chat. Without a chat template the model simply continues the text."""

    name: str
    policy: Policy
    options: ChatOptions
    history: list[Message] = field(default_factory=list)
    turns: int = 0
    forgets: bool = False
    """Whether the chat template has kept earlier turns from the model: it answers single questions only."""

    def answer(self, message: str) -> Iterator[str]:
        """The pieces of the answer to a user's message. The history holds what was printed, even if the rest of the
        answer is not wanted.

        Raises DataError where the conversation leaves no room for an answer, or holds what no UTF-8 can.
        """
        from prospect.engine.generate import stream

        options = self.options
        plain_text(message, "the message")
        plain_text(options.system or "", "the system message")
        self.history.append({"role": "user", "content": message})
        try:
            prompt = self.prompt(self.history)
            self.forgets = len(self.history) > 1 and prompt == self.prompt(self.history[-1:])
        except DataError:
            self.history.pop()
            raise
        answer = ""
        try:
            for piece in stream(
                self.policy,
                prompt,
                temperature=options.temperature,
                top_p=options.top_p,
                max_new_tokens=options.max_new_tokens,
                seed=options.seed + self.turns,
            ):
                answer += piece
                yield piece
        finally:
            self.turns += 1
            self.history.append({"role": "assistant", "content": answer})

    def prompt(self, history: list[Message]) -> list[int]:
        """The token ids of the conversation so far. Raises DataError where they fill the model's context."""
        assert self.policy.tokenizer is not None
        encoder = Encoder(self.policy.tokenizer, special_tokens=self.options.special_tokens or "text")
        if encoder.tokenizer.chat_template is None:
            ids = encoder.prompt_ids(Record("chat", "".join(str(m["content"]) for m in history), ()))
        else:
            system = self.options.system
            before = [] if system is None else [{"role": "system", "content": system}]
            ids = encoder.prompt_ids(Record("chat", (*before, *history), ()))
        if len(ids) >= self.policy.context:
            raise DataError(
                f"with this message the conversation has {len(ids)} tokens, {self.name} reads {self.policy.context}. "
                "Start again with /reset"
            )
        return ids


def converse(conversations: list[Conversation], lines: Iterable[str], console: Console) -> None:
    """Answer line after line until /quit or the end of the input."""
    if console.is_terminal:
        console.print(Text(f"{' and '.join(one.name for one in conversations)}. {HELP}", style="dim"))
    noted = False
    for line in lines:
        message = line.strip()
        if message == "/quit":
            return
        if message == "/reset":
            for one in conversations:
                one.history.clear()
            console.print("(a new conversation)", style="dim")
        elif message.startswith("/") and " " not in message:
            console.print(HELP, style="dim", highlight=False)
        elif message:
            try:
                _show(conversations, message, console)
            except DataError as error:
                console.print(Text(str(error), style="yellow"))
                continue
            names = " and ".join(one.name for one in conversations if one.forgets)
            if names and not noted:
                console.print(f"({names}: the chat template shows the last message only)", style="dim", markup=False)
                noted = True


def _show(conversations: list[Conversation], message: str, console: Console) -> None:
    """The answer as it grows; of several models in turn, one column each."""
    with suppress(KeyboardInterrupt):
        if len(conversations) == 1:
            for piece in conversations[0].answer(message):
                console.file.write(printable(piece))
                console.file.flush()
        else:
            answers = [""] * len(conversations)

            def table() -> Table:
                columns = Table(expand=True, show_lines=False)
                for one in conversations:
                    columns.add_column(Text(one.name), ratio=1, overflow="fold")
                columns.add_row(*map(Text, answers))
                return columns

            with Live(table(), console=console, refresh_per_second=8) as live:
                for pieces in zip_longest(*(one.answer(message) for one in conversations), fillvalue=""):
                    answers = [text + piece for text, piece in zip(answers, pieces, strict=True)]
                    live.update(table())
    if len(conversations) == 1 or not console.is_terminal:  # in a terminal rich ends a live table with one
        console.file.write("\n")


def input_lines(console: Console) -> Iterator[str]:
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
