"""A chat template at work: what it prints, in a bounded time, and what it may be given."""

from __future__ import annotations

import ctypes
import inspect
import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jinja2
import jinja2.defaults

from prospect.data.resume import ResumableTemplate, Unresumable, in_common
from prospect.errors import ModelError
from prospect.feedback.messages import arguments_of, with_json
from prospect.feedback.records import Message

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
