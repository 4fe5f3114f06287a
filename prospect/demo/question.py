"""A question of the sandbox's world, with all that is needed to judge an answer and to write one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Question:
    """`text` is what is asked; `key` what it is about, the same for every wording of the same problem.

    An answer's claims are what `reader` finds in it (see users.claims), without the words in `given`; they must be
    exactly `expected`, in order. Where `expected` is empty nothing can be known and only an admission is right. `wrong`
    are plausible mistakes, `mistake` the one that most people make, if there is one, and `forms` sentences that state
    an answer, `{}` being the answer.
    """

    kind: str
    text: str
    key: str
    reader: str
    expected: tuple[str, ...]
    wrong: tuple[str, ...]
    forms: tuple[str, ...]
    given: frozenset[str] = frozenset()
    mistake: str = ""

    @property
    def right(self) -> str:
        """The right answer as one would write it into a sentence; empty where nothing can be known."""
        return " and ".join(self.expected)
