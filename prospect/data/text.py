"""Records become text: what the chat template prints of a prompt and of its answers, made safe for training.

A row is printed twice, as the prompt that the model sees at inference and as the whole conversation; the answer is what
the second has behind the first. What people wrote is quoted (`textids.Quotes`), so that no control token in it opens or
ends a turn. Text prompts go as they are. Where what is trained is not simply what the row says, a Flaw tells so.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from prospect.data import template
from prospect.data.options import SpecialTokens
from prospect.data.template import NO_TEMPLATE, PLAIN, RENDER_ERRORS, Printer, apply, in_common
from prospect.data.textids import Quotes, TextIds, pattern
from prospect.errors import DataError, ModelError
from prospect.feedback.messages import with_objects
from prospect.feedback.records import Completion, Message, Record, function_of


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


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it is trained: `text` behind the prompt, quoted, and the token `end` (None: it was cut off and gets
    none). `source` is what the row says."""

    text: str
    end: int | None
    source: str
    flaws: Flaw


@dataclass(frozen=True, slots=True)
class TextRow:
    """A record as text, quoted."""

    prompt: str
    answers: list[Answer]
    flaws: Flaw
    quotes: Quotes


@dataclass(frozen=True, slots=True)
class _Parts:
    """A prompt as the template gets it, and the control tokens that its own text spells."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None
    kwargs: dict[str, Any]
    spelled: list[str]


_PROBE = "Kvyxq"
_MOST_QUOTES = 4096
"""Different strings quoted after which the characters begin anew: some of them are private ones that people wrote."""


class Renderer:
    """The text side of an Encoder: `rows` of records, as one tokenizer's chat template prints them."""

    def __init__(
        self, tokenizer: Any, texts: TextIds, special_tokens: SpecialTokens, chat_template: str | None, begins: bool
    ) -> None:
        """`begins`: whether the tokenizer puts BOS before a text, as the plain template then does, too."""
        self.tokenizer, self._texts = tokenizer, texts
        self.special_tokens = special_tokens
        if chat_template == "plain":
            tokenizer.chat_template = ("{{- bos_token }}" if begins else "") + PLAIN
        elif chat_template is not None:
            tokenizer.chat_template = template.read(chat_template)
        source = tokenizer.chat_template or ""
        source = source if isinstance(source, str) else "\n".join(source.values())
        self._words = frozenset(re.findall(r"[^\W\d]\w*", source))
        self._reserved = template.reserved(tokenizer)
        self._openings: dict[str, str] = {}
        self._printers = {prompt: Printer(tokenizer, prompt=prompt) for prompt in (False, True)}
        self._quotes = Quotes()
        self._messages: tuple[Message, ...] = ()  # the last prompt
        self._quoted: list[tuple[Message, list[str]]] = []  # what `_quote` makes of its messages
        self._tail, self._ending, turns = self._probe()
        spelled = "|".join(re.escape(str(tokenizer.convert_ids_to_tokens(i))) for i in self.end_of_turn_ids)
        self.ends = re.compile(rf"(?:(?:{spelled})\s*)+\Z" if spelled else "(?!)")
        """End-of-turn tokens at the end of a text."""
        # What others wrote holds no control token at all; the system's and the assistant's own words may hold those
        # that the model itself says (<think>, <tool_call>), but none that opens or ends a turn.
        turns |= {str(t) for t in (tokenizer.bos_token, tokenizer.eos_token) if t is not None}
        self._turns = pattern(turns)
        self._control = pattern(texts.special | turns | {t for t in texts.atoms if t in source})

    @property
    def end_of_turn_ids(self) -> tuple[int, ...]:
        """Ids at which generation should stop: the template's end-of-turn token and EOS."""
        ids = (self._texts.last_atom(self._ending), self.tokenizer.eos_token_id)
        return tuple(dict.fromkeys(i for i in ids if i is not None))

    def rows(self, records: Sequence[Record]) -> list[TextRow]:
        rows: list[TextRow] = []
        problems: list[DataError] = []
        for record in records:
            try:
                rows.append(self.row(record))
            except DataError as error:
                problems.append(error)
                if isinstance(error.__cause__, TimeoutError):  # waiting for all of them takes hours
                    break
        if problems:
            first = problems[0]
            more = f" ({len(problems) - 1} more rows fail)" if len(problems) > 1 else ""
            raise DataError(first.message + more, line=first.line, row=first.row, problems=tuple(problems)) from first
        return rows

    def row(self, record: Record) -> TextRow:
        if isinstance(record.prompt, str):
            return self._text_row(record, record.prompt)
        if not record.prompt:
            raise row_error("the prompt has no messages; a chat starts with at least one", record)
        if len(self._quotes) > _MOST_QUOTES:
            self._quotes, self._messages, self._quoted = Quotes(), (), []
        parts = self._parts(record)
        prompt = self._print(record, parts, None)
        flaws = Flaw.CONTROL if parts.spelled else Flaw(0)
        if unprinted(record, self._quotes.unquote(prompt)) is not None:
            flaws |= Flaw.UNPRINTED
        answers = [self._answer(record, completion, parts, prompt) for completion in record.completions]
        return TextRow(prompt, answers, flaws, self._quotes)

    def _text_row(self, record: Record, prompt: str) -> TextRow:
        """A text goes as it is: whoever writes the whole of what the model reads writes its control tokens, too."""
        answers = []
        for completion in record.completions:
            flaws = Flaw.CONTROL if self.spelled(record, completion) else Flaw(0)
            if set(_message(completion)) - {"role", "content"}:
                flaws |= Flaw.DROPPED  # a text has no place for tool calls
            end = self._eos() if completion.complete else None
            answers.append(Answer(completion.text, end, completion.text, flaws))
        return TextRow(prompt, answers, Flaw.CONTROL if self.spelled(record) else Flaw(0), Quotes())

    def spelled(self, record: Record, completion: Completion | None = None) -> list[str]:
        """The control tokens that the prompt's own text spells, or the completion's."""
        if not isinstance(record.prompt, str):
            message = None if completion is None else self._bare_message(completion)
            return self._parts(record).spelled if message is None else self._quote(message)[1]
        text = record.prompt if completion is None else self.ends.sub("", completion.text)
        spelled: dict[str, None] = {}
        Quotes().quote(text, self._control, spelled)
        return list(spelled)

    def unread_keywords(self, record: Record) -> list[str]:
        """Names in the record's template_kwargs that the template never mentions, so that they change nothing."""
        return [name for name in record.template_kwargs or () if name not in self._words]

    def _answer(self, record: Record, completion: Completion, parts: _Parts, prompt: str) -> Answer:
        """What the template prints of an answer behind the prompt.

        An answer that opens its own thought, or goes on in one that the prompt has opened, is the given text: a
        template that prints a thought of its own in front, or takes this one away, is not followed there.
        """
        message = self._bare_message(completion)
        quoted, spelled = self._quote(message)
        alone = set(message) <= {"role", "content"}
        opening = self._opening(record, prompt) if alone else ""
        source = str(quoted.get("content") or "")
        answer = _behind(source, opening)
        whole = self._print(record, parts, completion, quoted)
        unquote = self._quotes.unquote
        if whole.startswith(prompt):
            body, ending = self._split_ending(whole[len(prompt) :])
            thought = alone and _squashed(body) != _squashed(answer)
            if thought and _is_own_thought(source, body, opening, completion.complete):
                body = answer
        elif _goes_on(source, opening, completion.complete):
            body, ending = answer, self._split_ending(whole)[1]
        else:
            raise _no_prefix(record, completion, unquote(prompt), unquote(whole))
        flaws = self._changes(message, unquote(answer), unquote(body))
        flaws |= Flaw.CONTROL if spelled else Flaw(0)
        shown = unquote(source) if alone else _shown(message)
        if not completion.complete:
            return Answer(body, None, shown, flaws)
        end = self._texts.last_atom(ending)
        return Answer(body + ending, self._eos() if end is None else end, shown, flaws)

    def _changes(self, message: Message, answer: str, body: str) -> Flaw:
        """How the printed answer differs from the one in the row. Blanks do not count, nor do special tokens that the
        template puts around any answer."""
        trained = _squashed(body)
        if set(message) - {"role", "content"}:
            calls = [call for call in message.get("tool_calls") or () if isinstance(call, dict)]
            parts = [answer, *map(message.get, REASONING), *(function_of(call).get("name") for call in calls)]
            lossy = any(isinstance(part, str) and _squashed(part) not in trained for part in parts)
            return Flaw.DROPPED if lossy else Flaw(0)
        answer = _squashed(answer)
        before, same, after = trained.partition(answer) if answer else ("", "", trained)
        if same or not answer:
            extra = before + after
            for token in self._texts.atom.findall(extra):
                extra = extra.replace(token, "") if token in self._texts.special and "/" not in token else extra
            return Flaw.ADDED if extra else Flaw(0)
        return Flaw.DROPPED if trained in answer else Flaw.DROPPED | Flaw.ADDED

    def _opening(self, record: Record, prompt: str) -> str:
        """The thought that the generation prompt begins, and what follows it there: "<think>", "<think></think>", "".
        What also stands before earlier answers is the name of the role."""
        kwargs = self._keywords(record)
        name = json.dumps(kwargs, sort_keys=True, default=str)
        if name not in self._openings:
            question, answer = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": _PROBE}
            try:
                opened = apply(self.tokenizer, [question], None, kwargs, prompt=True)
                earlier = apply(self.tokenizer, [question, answer, question], None, kwargs)
            except RENDER_ERRORS:
                opened = earlier = ""
            own = common(opened, earlier)
            self._openings[name] = next((opened[m.start() :] for m in TAG.finditer(opened) if m.end() > own), "")
        opening = self._openings[name]
        return opening if prompt.endswith(opening) else ""

    def _bare_message(self, completion: Completion) -> Message:
        """The answer as a message, without the end-of-turn tokens that collected answers often carry as text."""
        message = _message(completion)
        return message | {"content": self.ends.sub("", completion.text)} if completion.text else message

    def _split_ending(self, text: str) -> tuple[str, str]:
        """(what was said, what ends the turn: the text up to and with its last special token, or "")."""
        if self._tail and text.endswith(self._tail):
            return text[: -len(self._tail)], self._ending
        # Turns may end in another way than the probe's, as a tool call does.
        last = [m for m in self._texts.atom.finditer(text) if not text[m.end() :].strip()]
        return (text[: last[0].start()], last[0].group()) if last else (text, "")

    def _probe(self) -> tuple[str, str, set[str]]:
        """What the template prints after the last answer; the part of it that ends the turn: what it also prints after
        earlier answers (Phi-3 closes the whole conversation with one more token, which no answer ends with); and the
        tokens that open and end turns."""
        question, answer = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": _PROBE}
        if self.tokenizer.chat_template is None:
            return "", "", set()
        try:
            tail = apply(self.tokenizer, [question, answer]).rpartition(_PROBE)[2]
            start, _, middle = apply(self.tokenizer, [question, answer, question]).rpartition(_PROBE)
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(f"the chat template is not valid Jinja: {error} (line {error.lineno})") from error
        except RENDER_ERRORS:
            return "", "", set()  # a template that cannot print this may still print the user's rows
        opening, _, header = start.partition("Hello")
        turns = {*self._texts.atom.findall(opening), *self._texts.atom.findall(middle)}
        turns |= {t for t in self._texts.atom.findall(header) if t in self._texts.special}
        for text in (tail[: common(tail, middle)], tail):
            atoms = list(self._texts.atom.finditer(text))
            if atoms:
                # EOS is sure; what else follows an answer may already belong to the next turn, as in Command R7B.
                end = next((m for m in atoms if m.group() == self.tokenizer.eos_token), atoms[-1])
                return tail, text[: end.end()], turns
        return tail, "", turns

    def _print(
        self, record: Record, parts: _Parts, completion: Completion | None, answer: Message | None = None
    ) -> str:
        """What the template prints, quoted: the prompt as at inference, or with `answer` the conversation."""
        if self.tokenizer.chat_template is None:
            raise ModelError(NO_TEMPLATE)
        messages = parts.messages if answer is None else [*parts.messages, answer]
        try:
            return self._printers[answer is None].print(messages, parts.tools, parts.kwargs)
        except RENDER_ERRORS as error:
            raise row_error(
                f"the chat template cannot print this conversation: {error or type(error).__name__}. Change the row, "
                "or the template with --chat-template FILE|plain",
                record,
                completion,
            ) from error

    def _parts(self, record: Record) -> _Parts:
        """A prompt as the template gets it. What it shares with the one before is quoted once."""
        assert not isinstance(record.prompt, str)
        tools: Any = None if record.tools is None else list(record.tools)
        kwargs: Any = self._keywords(record)
        same = in_common(self._messages, record.prompt)
        spelled: dict[str, None] = {}
        try:
            quoted = self._quoted[:same] + [self._quote(message) for message in record.prompt[same:]]
            for _, tokens in quoted:
                spelled |= dict.fromkeys(tokens)
            quotes = self._quotes_of_messages()
            plain = quotes.quote(tools, self._control, spelled), quotes.quote(kwargs, self._control, spelled)
        except ValueError as error:
            raise row_error(f"the row cannot be read: {error}. Leave it out", record) from error
        self._messages, self._quoted = record.prompt, quoted
        tools, kwargs = plain if self.special_tokens == "text" else (tools, kwargs)
        return _Parts([message for message, _ in quoted], tools, kwargs, list(spelled))

    def _quote(self, message: Message) -> tuple[Message, list[str]]:
        """A message as the template gets it, and the control tokens that it spells."""
        message = with_objects(message)
        role = message.get("role")
        if role == "assistant" and isinstance(message.get("content"), str):
            message = message | {"content": self.ends.sub("", message["content"])}
        control = self._turns if role in ("assistant", "system", "developer") else self._control
        quotes, spelled = self._quotes_of_messages(), dict[str, None]()
        quoted = {k: v if k == "role" else quotes.quote(v, control, spelled) for k, v in message.items()}
        return quoted if self.special_tokens == "text" else message, list(spelled)

    def _quotes_of_messages(self) -> Quotes:
        """Where control tokens in messages are tokens, nothing is quoted: they are looked for alone."""
        return self._quotes if self.special_tokens == "text" else Quotes()

    def _keywords(self, record: Record) -> dict[str, Any]:
        """The record's template_kwargs that the template reads. Raises DataError for names that are not the row's to
        give: another template, special tokens, options of transformers."""
        for name in record.template_kwargs or ():
            if name in self._reserved:
                raise row_error(
                    f'template_kwargs may not hold "{name}": a row may set the switches that its chat template reads '
                    '(such as "enable_thinking"), neither the template itself nor how it is applied. Leave it out',
                    record,
                )
        return {k: v for k, v in (record.template_kwargs or {}).items() if k in self._words}

    def _eos(self) -> int:
        if self.tokenizer.eos_token_id is None:
            raise ModelError(
                "the tokenizer has no EOS token, so an answer cannot end: set eos_token in the model's folder"
            )
        return int(self.tokenizer.eos_token_id)


# Answers with a thought: how one begins and ends, in the tags of models (<think>, [THINK], <|START_THINKING|>)

TAG = re.compile(r"<\|?\w+\|?>|\[\w+\]")
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message in which chat interfaces hand back the model's thoughts."""


def _closing(tag: str) -> str:
    """What closes a thought that `tag` opens: </think>, [/THINK], <|END_THINKING|>."""
    return tag.replace("START", "END") if "START" in tag else tag[:1] + "/" + tag[1:]


def _first_tag(text: str) -> str:
    """The tag with which a text begins, or ""."""
    match = TAG.match(text.lstrip())
    return match.group() if match else ""


def _behind(answer: str, opening: str) -> str:
    """An answer without the opening of its thought where the prompt already has that."""
    bare = answer.lstrip()
    for start in (opening, opening.strip()):
        if start and bare.startswith(start):
            return bare[len(start) :]
    return answer


def _goes_on(answer: str, opening: str, complete: bool) -> bool:
    """Whether an answer goes on where the prompt ends: in the thought that `opening` begins, or behind it."""
    tag = _first_tag(opening)
    if not tag or _closing(tag) in opening:
        return bool(tag) and (answer.startswith(opening) or _first_tag(answer) != tag)
    return _first_tag(answer) == tag or _closing(tag) in answer or not complete


def _is_own_thought(answer: str, body: str, opening: str, complete: bool) -> bool:
    """Whether an answer has a thought that it does not end, so that the template printed `body` with another one."""
    tag = _first_tag(opening)
    if tag and _closing(tag) not in opening:
        return _closing(tag) not in answer and (_first_tag(answer) == tag or not complete)
    return bool(_first_tag(body)) and _first_tag(answer) == _first_tag(body) and _squashed(answer) in _squashed(body)


# Texts and errors


def unprinted(record: Record, prompt: str) -> str | None:
    """The first thing that users or the system say in the prompt and the template does not print. (Earlier thoughts of
    the assistant are left out by design, and tools' results are often printed in another form.)"""
    end, squashed = 0, ""
    for message in record.prompt:
        assert not isinstance(message, str)
        content = message.get("content")
        if message.get("role") not in ("user", "system", "developer") or not isinstance(content, str):
            continue
        at = prompt.find(content.strip(), end)
        if at >= 0:
            end = at + len(content.strip())
            continue
        squashed = squashed or _squashed(prompt)
        if _squashed(content) not in squashed:
            return content
    return None


def _squashed(text: str) -> str:
    """A text without blanks."""
    return "".join(text.split())


def common(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Length of the longest common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _shown(message: Message) -> str:
    return json.dumps({k: v for k, v in message.items() if k != "role" and v}, ensure_ascii=False, default=str)


def _message(completion: Completion) -> Message:
    content = completion.content
    return {"role": "assistant", **({"content": content} if isinstance(content, str) else content)}


def row_error(message: str, record: Record, completion: Completion | None = None) -> DataError:
    at = completion or (record.completions[0] if record.completions else None)
    return DataError(message, line=at.line if at else None, row=completion.id if completion else record.id)


def _no_prefix(record: Record, completion: Completion, prompt: str, whole: str) -> DataError:
    at = common(prompt, whole)
    return row_error(
        "the chat template prints the prompt differently once the answer follows, so the two cannot be separated: "
        f"at character {at} the prompt has {prompt[at : at + 30]!r}, the conversation {whole[at : at + 30]!r}. "
        "Set the template's switches in the row (for thinking models often chat_template_kwargs "
        '{"enable_thinking": false}), give the answer as the template wants it (with its reasoning), or pass '
        "--chat-template FILE|plain",
        record,
        completion,
    )
