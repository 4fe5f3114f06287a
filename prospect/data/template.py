"""A chat template at work: what it prints, in a bounded time, and what it may be given."""

from __future__ import annotations

import ctypes
import inspect
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from operator import is_
from pathlib import Path
from typing import Any, TypeVar

import jinja2
import jinja2.defaults
from jinja2 import nodes

from prospect.errors import ModelError
from prospect.feedback.messages import arguments_of, with_json
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
        _observe(tree.body, count())
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


def _observe(body: list[nodes.Node], numbers: Iterator[int]) -> None:
    """Have the loops that print right into the text tell where they are."""
    for node in body:
        if isinstance(node, nodes.If):
            for part in (node.body, node.else_, *(one.body for one in node.elif_)):
                _observe(part, numbers)
        elif isinstance(node, nodes.For) and node.test is None and not node.recursive:
            number = nodes.Const(next(numbers))
            node.iter = _call(_ENTER, number, node.iter)
            node.body.insert(0, nodes.ExprStmt(_call(_STEP, number, nodes.Name("loop", "load"))))


def _call(name: str, *arguments: nodes.Node) -> nodes.Call:
    return nodes.Call(nodes.Name(name, "load"), list(arguments), [], None, None)


T = TypeVar("T")

PLAIN = """\
{%- for message in messages %}
{%- if message['content'] is not string %}
{{- raise_exception('the plain template reads messages of text only') }}
{%- endif %}
{%- set content = message['content'] | trim %}
{%- if message['role'] in ['system', 'developer'] %}
{{- content }}
{%- else %}
{{- message['role'] | capitalize + ':' + (' ' + content if content else '') }}
{%- endif %}
{%- if message['role'] == 'assistant' %}
{{- eos_token }}
{%- endif %}
{{- '\\n\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- 'Assistant:' }}
{%- endif %}"""
"""Our template for models without one. The blank after "Assistant:" belongs to the answer, since most tokenizers keep a
blank and the word behind it in one token."""

NO_TEMPLATE = (
    "the data are chats, but the tokenizer has no chat template. Pass --chat-template plain (a simple one of ours) or "
    "--chat-template FILE (a Jinja file)"
)
SECONDS = 10.0
"""The longest that a template may take for one conversation. An ordinary one takes a ten thousandth of a second."""

# A template is a program of the model's authors: what it meets in a row it did not expect surfaces as any of these.
RENDER_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    MemoryError,
    TimeoutError,
)


def apply(
    tokenizer: Any,
    messages: list[Message],
    tools: list[dict[str, Any]] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    prompt: bool = False,
) -> str:
    """What the template prints. Tool calls carry their arguments as objects, which is the rule; a template that
    wants them as JSON text, as DeepSeek's do, gets that."""

    def printed(messages: list[Message]) -> str:
        return within(
            SECONDS,
            lambda: str(
                tokenizer.apply_chat_template(
                    messages, tools=tools, tokenize=False, add_generation_prompt=prompt, **(kwargs or {})
                )
            ),
        )

    objects = [a for m in messages for a in arguments_of(m) if isinstance(a, dict) and a]
    try:
        text = printed(messages)
    except TypeError:
        if not objects:
            raise
        return printed([with_json(m) for m in messages])
    if any(str(a) in text for a in objects):  # Python's own way to write them, in which no model was trained
        return printed([with_json(m) for m in messages])
    return text


LONG = 16
"""Messages that two conversations must share for the second to be printed from where the first ended."""


class Printer:
    """`apply` for conversations that come one after another: where one begins like the one before, only what is new is
    printed. Messages that stay the same must be the same objects."""

    def __init__(self, tokenizer: Any, *, prompt: bool) -> None:
        self._tokenizer, self._prompt = tokenizer, prompt
        self._messages: list[Message] = []
        self._inputs: list[Message] = []  # as transformers hands them to templates
        self._template: ResumableTemplate | None = None
        self._compared = 0  # messages of the last text that was compared with `apply`; -1: it differs, or cannot resume

    def print(self, messages: list[Message], tools: list[dict[str, Any]] | None, kwargs: Mapping[str, Any]) -> str:
        """What `apply` returns."""
        same = in_common(self._messages, messages)
        self._messages = messages
        del self._inputs[same:]
        if same < LONG:
            self._template, self._compared = None, 0
        elif self._compared >= 0:
            try:
                return self._resume(messages, tools, kwargs)
            except (Unresumable, *RENDER_ERRORS):
                self._compared = -1
        return apply(self._tokenizer, messages, tools, kwargs, prompt=self._prompt)

    def _resume(self, messages: list[Message], tools: list[dict[str, Any]] | None, kwargs: Mapping[str, Any]) -> str:
        same = len(self._inputs)
        if any(arguments_of(message) for message in messages[same:]):
            raise Unresumable  # whether arguments are printed as objects is seen on the whole text
        for message in messages[same:]:
            text = self._tokenizer.apply_chat_template([message], chat_template=_AS_HANDED, tokenize=False)
            self._inputs.append(json.loads(text))
        template = self._template = self._template or resumable(self._tokenizer.get_chat_template(None, tools))
        variables = {
            **self._tokenizer.special_tokens_map,
            **kwargs,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": self._prompt,
        }
        text = within(SECONDS, lambda: template.render(self._inputs, variables, same))
        if not template.resumes:
            raise Unresumable
        if len(messages) >= 2 * self._compared:
            if text != apply(self._tokenizer, messages, tools, kwargs, prompt=self._prompt):
                raise Unresumable
            self._compared = len(messages)
        return text


_AS_HANDED = "{{ messages[0] | tojson }}"


def resumable(source: str) -> ResumableTemplate:
    """The template as transformers compiles it, resumable. Raises Unresumable."""
    try:
        from transformers.utils.chat_template_utils import _compile_jinja_template

        environment = _compile_jinja_template(source).environment
    except (ImportError, AttributeError) as error:  # no part of transformers' interface
        raise Unresumable from error
    return ResumableTemplate(environment, source)


def read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f'cannot read the chat template "{path}" ({error}). Expected "plain" or a Jinja file'
        ) from error


def reserved(tokenizer: Any) -> frozenset[str]:
    """Names that no row may give to its template: what transformers, the tokenizer and Jinja give."""
    options = set(inspect.signature(tokenizer.apply_chat_template).parameters) - {"documents", "kwargs"}
    tokens = {f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")}
    functions = {*jinja2.defaults.DEFAULT_NAMESPACE, "raise_exception", "strftime_now"}
    return frozenset(options | tokens | set(tokenizer.special_tokens_map) | functions | {"messages"})


# The time limit


TICK = 0.05
"""Seconds between two looks of the watchdog."""


class _Overtime(BaseException):
    """Raised inside late code. It is no Exception, so that no handler in that code swallows it."""


_deadlines: dict[int, float] = {}
"""Thread -> when its call must be over. A thread that is missing here is not interrupted."""
_lock = threading.Lock()
_watchdog: threading.Thread | None = None


def within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` returns, in any thread, on any platform. Raises TimeoutError where it runs for more than `seconds`,
    and whatever it raises. Calls do not nest.

    Signals reach the main thread only, and a process of its own costs seconds to start. So one watchdog thread raises
    an exception inside the thread that is late (PyThreadState_SetAsyncExc). It arrives between two steps of Python
    code: loops and recursion end, one long call into C runs to its own end.
    """
    thread = threading.get_ident()
    arrived = False
    try:
        _start(thread, seconds)
        try:
            return call()
        except _Overtime:
            arrived = True
            raise
        finally:
            with _lock:
                late = _deadlines.pop(thread, None) is None
            if late and not arrived:  # the exception is on its way, and must not arrive behind this function
                time.sleep(1)
                raise _Overtime
    except _Overtime:
        raise TimeoutError(f"it did not end within {seconds:g} s") from None


def _start(thread: int, seconds: float) -> None:
    global _watchdog
    with _lock:
        assert thread not in _deadlines, "calls do not nest"
        _deadlines[thread] = time.monotonic() + seconds
        if _watchdog is None or not _watchdog.is_alive():  # a forked process starts without one
            _watchdog = threading.Thread(target=_watch, name="prospect-deadline", daemon=True)
            _watchdog.start()


def _watch() -> None:
    idle = 0
    while idle * TICK < 5:
        time.sleep(TICK)
        with _lock:
            idle = 0 if _deadlines else idle + 1
            now = time.monotonic()
            for thread in [t for t, due in _deadlines.items() if due < now]:
                del _deadlines[thread]
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_Overtime))
