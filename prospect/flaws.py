"""Where the ids of a row are not simply its text."""

from __future__ import annotations

import enum

from prospect.feedback.arguments import function_of
from prospect.feedback.records import Message
from prospect.textids import TextIds
from prospect.thoughts import squashed

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
