"""What the data doctor found: plain values that go to JSON and back, and the exit code they mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from prospect.feedback.records import EXAMPLES, Completion, at

Level = Literal["ok", "info", "warning", "error"]
LEVELS: tuple[Level, ...] = ("error", "warning", "info", "ok")
"""Worst first."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`key` names the check for machines, `message` says what was found and what to do, `examples` where; `data` holds
    the numbers behind it."""

    key: str
    level: Level
    message: str
    examples: tuple[str, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Findings:
    """`summary`: counts and lengths of the file; `findings`: one per check that has something to say, worst first."""

    summary: dict[str, Any]
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """2 where something must be repaired before training, else 0."""
        return 2 if any(f.level == "error" for f in self.findings) else 0

    def to_json(self) -> dict[str, Any]:
        """The object that `prospect check --json` prints and that a run folder keeps as check.json."""
        found = [{**asdict(f), "examples": list(f.examples)} for f in self.findings]
        return {"exit_code": self.exit_code, "summary": self.summary, "findings": found}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Findings:
        """The inverse of `to_json`."""
        found = (Finding(**{**f, "examples": tuple(f["examples"])}) for f in value["findings"])
        return cls(dict(value["summary"]), tuple(found))


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Sorted by level; the order of the checks is kept within one."""
    return tuple(sorted(findings, key=lambda f: LEVELS.index(f.level)))


def both(a: Completion, b: Completion) -> str:
    """Where two completions stand."""
    return f"{at(a)} and {at(b)}"


def first(examples: Sequence[str]) -> tuple[str, ...]:
    return tuple(examples[:EXAMPLES])


def of(count: int, total: int) -> str:
    """ "3 of 60 (5 %)"."""
    share = 100 * count / total if total else 0.0
    return f"{count} of {total} ({share:.{0 if share >= 10 or share == round(share) else 1}f} %)"
