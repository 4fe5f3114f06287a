"""Advice as a table: each row has a condition on a case, a proposal, its reason, a confidence and a source.

`prospect recommend` has such tables on feedback before a run, the report on what a run has shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

Case = TypeVar("Case")
Confidence = Literal["high", "medium", "low"]
"""high: tested and significant, or nothing else is possible. medium: a published rule or setting for such a case, or
evidence that points one way without being significant. low: a default or our judgement; nobody has shown it."""
LEGEND = (
    "high: tested and significant, or no other choice; medium: published for such a case, or evidence short of "
    "significance; low: nobody has shown it."
)
"""The same for those who read advice."""

JUDGEMENT = "our judgement"


@dataclass(frozen=True, slots=True)
class Advice:
    """`value` is the proposal on the topic `name`; `instead` holds what else could be tried, each with its condition
    and source."""

    name: str
    value: str
    confidence: Confidence
    reason: str
    source: str
    instead: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule(Generic[Case]):
    """One row of a table of advice on a Case, for every case in which `when` holds.

    The texts are templates of str.format that name the case's attributes ("{groups:.0f} prompts"), or functions of the
    case. An empty text of `instead` is left out.
    """

    name: str
    when: Callable[[Case], bool]
    value: str | Callable[[Case], str]
    reason: str | Callable[[Case], str]
    source: str | Callable[[Case], str] = JUDGEMENT
    confidence: Confidence = "low"
    instead: tuple[str | Callable[[Case], str], ...] = ()

    def advice(self, case: Case) -> Advice:
        """The row with this case's figures in its texts."""
        value, reason, source = (render(text, case) for text in (self.value, self.reason, self.source))
        instead = tuple(text for text in (render(text, case) for text in self.instead) if text)
        return Advice(self.name, value, self.confidence, reason, source, instead)


def advise(rules: Iterable[Rule[Case]], case: Case) -> Iterator[Advice]:
    """The advice of every rule whose condition holds, in the order of the table."""
    return (rule.advice(case) for rule in rules if rule.when(case))


def first(rules: Iterable[Rule[Case]], case: Case) -> Advice:
    """The advice of the first rule whose condition holds: a table that decides. Its last row holds always."""
    return next(advise(rules, case))


def render(text: str | Callable[[Case], str], case: Case) -> str:
    """A text with the case's figures: 0.5 in "{share:.0%}" is "50 %", and parts without words leave no gap."""
    filled = text(case) if callable(text) else text.format_map(_Attributes(case))
    return " ".join(re.sub(r"(?<=\d)%", " %", filled).split())


class _Attributes(dict[str, object]):
    """The attributes of an object by their names, for str.format_map."""

    def __init__(self, case: object) -> None:
        self.case = case

    def __missing__(self, name: str) -> object:
        return getattr(self.case, name)
