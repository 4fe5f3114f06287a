"""A chat template that goes on where the last conversation ended.

A chat of n rated turns is n prompts, each the beginning of the next; printed one by one their cost is the square of n.
Here the template itself is watched while it prints. At the start of each round of its first loop over the messages a
snapshot is taken: how much is printed by then, how many messages the template has looked at, and what its namespaces
hold. Nothing else in Jinja outlives a round. For any conversation that begins with the messages looked at, the template
would come to this very point, so it is put there, and only prints on. A template that asks for the end first (the
number of messages, the last one) has no such point, and is printed from its start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from operator import is_
from typing import Any

import jinja2
from jinja2 import nodes

from prospect.feedback.records import Message

_STATEFUL = {"cycler", "joiner", "lipsum", "random", "changed", "previtem"}
"""Parts of Jinja that remember earlier rounds, or differ each time."""
_PLAIN = (str, int, float, bool, type(None), list, tuple, dict, jinja2.Undefined)


class Unresumable(Exception):
    """The template has to be printed from its start."""


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """The start of round `index` of the loop `number`, `length` characters printed, `horizon` messages looked at."""

    number: int
    index: int
    length: int
    horizon: float
    namespaces: list[dict[str, Any]]


@dataclass(slots=True)
class _Run:
    """One printing. `horizon` counts the messages looked at, and is infinite once the end is known."""

    messages: Sequence[Message]
    text: list[str] = field(default_factory=list)
    length: int = 0
    horizon: float = 0
    namespaces: list[Any] = field(default_factory=list)
    origin: _Snapshot | None = None
    before: str = ""
    number: int | None = None
    created: int = 0
    resumes: bool = False
    snapshots: list[_Snapshot] = field(default_factory=list)

    def enter(self, number: int, items: Any) -> Any:
        """What the loop `number` goes through. The first one over messages starts where `origin` is."""
        if self.number is not None or type(items) is not _Messages:
            return items
        self.number, self.created = number, len(self.namespaces)
        if self.origin is None:
            return items
        if self.origin.number != number or len(self.origin.namespaces) != self.created:
            raise Unresumable
        self.text, self.length = [self.before[: self.origin.length]], self.origin.length
        self.horizon = max(self.horizon, self.origin.horizon)
        for namespace, values in zip(self.namespaces, self.origin.namespaces, strict=True):
            values_of(namespace).update(values)
        self.resumes = True
        return items.behind(self.origin.index)

    def step(self, number: int, loop: Any) -> None:
        """Called at the start of each round."""
        if number != self.number:
            return
        if self.resumes:
            assert self.origin is not None
            loop.index0, self.resumes = self.origin.index, False
        elif self.horizon <= len(self.messages):
            values = [dict(values_of(namespace)) for namespace in self.namespaces]
            if all(isinstance(value, _PLAIN) for one in values for value in one.values()):
                self.snapshots.append(_Snapshot(number, loop.index0, self.length, self.horizon, values))


class _Messages:
    """Messages from `start` on as a template sees them: what it looks at is noted. It is no list on purpose: whatever
    would read a list behind the back of these methods fails."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, run: _Run, start: int = 0, skip: int = 0) -> None:
        self._run, self._start, self._skip = run, start, skip

    def behind(self, rounds: int) -> _Messages:
        """The same, of which a loop passes over the first ones."""
        return _Messages(self._run, self._start, rounds)

    def __iter__(self) -> Iterator[Message]:
        for i in count(self._start + self._skip):
            if not self._exists(i):
                return
            yield self._run.messages[i]

    def __getitem__(self, key: Any) -> Any:
        if type(key) is int and key >= 0 and self._exists(self._start + key):
            return self._run.messages[self._start + key]
        if isinstance(key, slice) and type(key.start) is int and key.start >= 0 and key.stop is key.step is None:
            return _Messages(self._run, self._start + key.start)
        return self._all()[key]

    def __len__(self) -> int:
        return len(self._all())

    def __bool__(self) -> bool:
        return self._exists(self._start)

    def __reversed__(self) -> Iterator[Message]:
        return reversed(self._all())

    def __eq__(self, other: object) -> bool:
        raise Unresumable

    def __repr__(self) -> str:
        raise Unresumable

    def _exists(self, i: int) -> bool:
        exists = i < len(self._run.messages)
        self._run.horizon = max(self._run.horizon, i + 1) if exists else math.inf
        return exists

    def _all(self) -> Sequence[Message]:
        self._run.horizon = math.inf
        return self._run.messages[self._start :]


def values_of(namespace: Any) -> dict[str, Any]:
    """What a Jinja namespace holds."""
    values: dict[str, Any] = namespace._Namespace__attrs
    return values


def in_common(some: Sequence[Any], others: Sequence[Any]) -> int:
    """How many objects stand at the start of both."""
    same = list(map(is_, some, others))
    return len(same) if all(same) else same.index(False)


class ResumableTemplate:
    """`environment` and `source` of a template; `render` prints conversations as it would, each of them faster where it
    begins like the one before. Raises Unresumable for a template of which that cannot be known."""

    def __init__(self, environment: jinja2.Environment, source: str) -> None:
        tree = environment.parse(source)
        names = {node.name for node in tree.find_all(nodes.Name)}
        names |= {node.name for node in tree.find_all(nodes.Filter)}
        names |= {node.attr for node in tree.find_all(nodes.Getattr)}
        names |= {node.arg.value for node in tree.find_all(nodes.Getitem) if isinstance(node.arg, nodes.Const)}
        if names & _STATEFUL:
            raise Unresumable
        _watch(tree.body, count())
        tree.set_lineno(1).set_environment(environment)
        self._template = environment.from_string(tree)
        self._namespace: Any = environment.globals["namespace"]
        self._variables: Mapping[str, Any] = {}
        self._text = ""
        self._snapshots: list[_Snapshot] = []

    def render(self, messages: Sequence[Message], variables: Mapping[str, Any], same: int) -> str:
        """What the template prints; the first `same` messages are those of the conversation before. Raises Unresumable,
        and what the template raises."""
        same = same if variables == self._variables else 0
        while self._snapshots and self._snapshots[-1].horizon > same:
            self._snapshots.pop()
        earlier, self._snapshots = self._snapshots, []
        run = _Run(messages, origin=earlier[-1] if earlier else None, before=self._text)

        def namespace(*values: Any, **more: Any) -> Any:
            run.namespaces.append(self._namespace(*values, **more))
            return run.namespaces[-1]

        hooks: dict[str, Callable[..., Any]] = {"namespace": namespace, _ENTER: run.enter, _STEP: run.step}
        for piece in self._template.generate(**variables, **hooks, messages=_Messages(run)):
            run.text.append(piece)
            run.length += len(piece)
        self._variables, self._text, self._snapshots = variables, "".join(run.text), [*earlier, *run.snapshots]
        return self._text

    @property
    def resumes(self) -> bool:
        """Whether the last conversation left a point to go on from."""
        return bool(self._snapshots)


_ENTER, _STEP = "prospect_enter", "prospect_step"


def _watch(body: list[nodes.Node], numbers: Iterator[int]) -> None:
    """Have the loops that print right into the text tell where they are."""
    for node in body:
        if isinstance(node, nodes.If):
            for part in (node.body, node.else_, *(one.body for one in node.elif_)):
                _watch(part, numbers)
        elif isinstance(node, nodes.For) and node.test is None and not node.recursive:
            number = nodes.Const(next(numbers))
            node.iter = _call(_ENTER, number, node.iter)
            node.body.insert(0, nodes.ExprStmt(_call(_STEP, number, nodes.Name("loop", "load"))))


def _call(name: str, *arguments: nodes.Node) -> nodes.Call:
    return nodes.Call(nodes.Name(name, "load"), list(arguments), [], None, None)
