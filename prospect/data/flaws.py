"""Where the ids of a row are not simply its text."""

from __future__ import annotations

import enum

from prospect.data.resume import in_common
from prospect.data.textids import TextIds
from prospect.data.thoughts import squashed
from prospect.feedback.records import Message, Record, function_of

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message in which chat interfaces hand back the model's thoughts."""


class Flaw(enum.IntFlag):
    """Why a row's ids are not simply its text."""

    STRADDLED = 1
    """A token stood across the end of the prompt and was split there."""
    ADDED = 2
    """The template prints text into the answer that the answer has not."""
    DROPPED = 4
    """The template leaves out text of the answer."""
    UNPRINTED = 8
    """The template leaves out a message of the prompt."""
    CONTROL = 16
    """The row's own text spells a control token of the tokenizer."""
    LOSSY = 32
    """The tokenizer does not give the text back."""


def changes(message: Message, said: str, body: str, texts: TextIds) -> Flaw:
    """How the printed answer differs from the given one. Blanks do not count, nor do special tokens that the
    template puts around any answer."""
    trained = squashed(body)
    if set(message) - {"role", "content"}:
        calls = [function_of(call).get("name") for call in message.get("tool_calls") or () if isinstance(call, dict)]
        parts = [said, *(message.get(key) for key in REASONING), *calls]
        lost = any(isinstance(part, str) and squashed(part) not in trained for part in parts)
        return Flaw.DROPPED if lost else Flaw(0)
    said = squashed(said)
    if said == trained:
        return Flaw(0)
    before, same, after = trained.partition(said) if said else ("", "", trained)
    if same or not said:
        added = before + after
        for token in texts.atom.findall(added):
            added = added.replace(token, "") if token in texts.special and "/" not in token else added
        return Flaw.ADDED if added else Flaw(0)
    return Flaw.DROPPED if trained in said else Flaw.DROPPED | Flaw.ADDED


class Unprinted:
    """Looks for the messages of prompts that come one after another; where one begins like the one before, only for
    those that are new. `_messages` stand in `_text`, the beginning of the last prompt."""

    def __init__(self) -> None:
        self._messages: tuple[Message, ...] = ()
        self._text = ""

    def first(self, record: Record, prompt: str) -> str | None:
        """The first thing that users or the system say in the prompt and the template does not print. (Earlier thoughts
        of the assistant are left out by design, and tools' results are often printed in another form.)"""
        assert not isinstance(record.prompt, str)
        index = end = 0
        if prompt.startswith(self._text) and in_common(self._messages, record.prompt) == len(self._messages):
            index, end = len(self._messages), len(self._text)
        settled, whole, missing = (index, end), "", None
        for i, message in enumerate(record.prompt[index:], index):
            content = message.get("content")
            if message.get("role") not in ("user", "system", "developer") or not isinstance(content, str):
                continue
            at = prompt.find(content.strip(), end)
            if at >= 0:
                end = at + len(content.strip())
                settled = settled if whole else (i + 1, end)
                continue
            whole = whole or squashed(prompt)
            if squashed(content) not in whole:
                missing = content
                break
        self._messages, self._text = record.prompt[: settled[0]], prompt[: settled[1]]
        return missing
