"""A chat template at work: what it prints, in a bounded time, and what it may be given."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import jinja2.defaults

from prospect.data.deadline import within
from prospect.data.resume import ResumableTemplate, Unresumable, in_common
from prospect.errors import ModelError
from prospect.feedback.messages import arguments_of, with_json
from prospect.feedback.records import Message

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


@dataclass
class _Memory:
    """The last conversation, as it came and as transformers hands it to templates."""

    messages: list[Message] = field(default_factory=list)
    handed: list[Message] = field(default_factory=list)
    template: ResumableTemplate | None = None
    compared: int = 0


class Printer:
    """`apply` for conversations that come one after another: where one begins like the one before, only what is new is
    printed. Messages that stay the same must be the same objects."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._memories = {prompt: _Memory() for prompt in (False, True)}
        self._handed: dict[int, tuple[Message, Message]] = {}  # holds the message, or its id could be another's later

    def print(
        self,
        messages: list[Message],
        tools: list[dict[str, Any]] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        prompt: bool = False,
    ) -> str:
        """What `apply` returns."""
        memory = self._memories[prompt]
        same = in_common(memory.messages, messages)
        memory.messages = messages
        del memory.handed[same:]
        if same < LONG:
            memory.template, memory.compared = None, 0
            self._handed.clear()
        elif memory.compared >= 0:
            try:
                return self._resume(memory, messages, tools, kwargs, prompt)
            except (Unresumable, *RENDER_ERRORS):
                memory.compared = -1
        return apply(self._tokenizer, messages, tools, kwargs, prompt=prompt)

    def _resume(
        self,
        memory: _Memory,
        messages: list[Message],
        tools: list[dict[str, Any]] | None,
        kwargs: Mapping[str, Any] | None,
        prompt: bool,
    ) -> str:
        same = len(memory.handed)
        new = messages[same:]
        if any(arguments_of(message) for message in new):
            raise Unresumable  # whether arguments are printed as objects is seen on the whole text
        memory.handed = [*memory.handed, *map(self._hand, new)]
        if memory.template is None:
            memory.template = resumable(self._tokenizer.get_chat_template(None, tools))
        variables = {
            **self._tokenizer.special_tokens_map,
            **(kwargs or {}),
            "tools": tools,
            "documents": None,
            "add_generation_prompt": prompt,
        }
        template, handed = memory.template, memory.handed
        text = within(SECONDS, lambda: template.render(handed, variables, same))
        if not template.resumes:
            raise Unresumable
        if len(messages) >= 2 * memory.compared:
            if text != apply(self._tokenizer, messages, tools, kwargs, prompt=prompt):
                raise Unresumable
            memory.compared = len(messages)
        return text

    def _hand(self, message: Message) -> Message:
        """The message as transformers hands it to a template."""
        if id(message) not in self._handed:
            said = self._tokenizer.apply_chat_template([message], chat_template=_AS_HANDED, tokenize=False)
            self._handed[id(message)] = message, json.loads(said)
        return self._handed[id(message)][1]


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
