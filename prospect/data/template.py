"""A tokenizer's chat template, made safe for training: where the prompt ends, which token ends the answer, and where
what is trained is not simply what was said."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from prospect.data.flaws import Flaw, Unprinted, changes
from prospect.data.growing import GrowingIds, Ids, Start
from prospect.data.options import SpecialTokens
from prospect.data.printing import (
    NO_TEMPLATE,
    PLAIN,
    RENDER_ERRORS,
    Printer,
    apply,
    read,
    reserved,
)
from prospect.data.quotes import Quotes, pattern
from prospect.data.resume import in_common
from prospect.data.textids import TextIds, ended
from prospect.data.thoughts import (
    TAG,
    behind,
    goes_on,
    own_thought,
    squashed,
)
from prospect.errors import DataError, ModelError
from prospect.feedback.messages import with_objects
from prospect.feedback.records import Completion, Message, Record, cite

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "Kvyxq"


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one record; `completions` and `flaws` are aligned with the record's completions."""

    prompt: Ids
    completions: list[list[int]]
    flaws: list[Flaw]


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer as it is trained: `text` behind the prompt, quoted, and the token `end` (None: it was cut off and gets
    none). `said` is what the row says."""

    text: str
    end: int | None
    said: str
    flaws: Flaw


_Parts = tuple[list[Message], list[dict[str, Any]] | None, dict[str, Any]]
"""Messages, tools and keywords of a prompt, quoted."""


@dataclass(frozen=True, slots=True)
class _Row:
    """A record as text, quoted."""

    prompt: str
    answers: list[_Answer]
    flaws: Flaw
    quotes: Quotes


@dataclass(frozen=True, slots=True)
class _Quoted:
    """The messages of the last prompt, as they came and quoted, and what was quoted in them."""

    messages: tuple[Message, ...]
    quoted: list[Message]
    quotes: Quotes


_NOTHING = _Quoted((), [], Quotes())


class Template:
    """The way from records to ids for one tokenizer.

    `chat_template`: None for the tokenizer's own, "plain", or the path of a Jinja file; the one chosen is stored in the
    tokenizer, so that a saved model chats with it. `special_tokens`: what a control token inside a message is.
    `text_prefix`: the ids (BOS) that the tokenizer puts before a text. Raises ModelError for a template that cannot be
    read.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
        special_tokens: SpecialTokens = "text",
    ) -> None:
        self.tokenizer: Any = tokenizer
        self.special_tokens = special_tokens
        self.text_prefix = self._text_prefix()
        if chat_template is not None:
            self.tokenizer.chat_template = self._plain() if chat_template == "plain" else read(chat_template)
        self._texts = TextIds(tokenizer)
        self._growing = GrowingIds(self._texts)
        source = self.tokenizer.chat_template or ""
        source = source if isinstance(source, str) else "\n".join(source.values())
        self._words = frozenset(re.findall(r"[^\W\d]\w*", source))
        self._reserved = reserved(self.tokenizer)
        self._openings: dict[str, str] = {}
        self._printer = Printer(tokenizer)
        self._last = dict.fromkeys((False, True), _NOTHING)
        self._unprinted = Unprinted()
        self._tail, self._ending, turns = self._probe()
        ends = "|".join(re.escape(str(self.tokenizer.convert_ids_to_tokens(i))) for i in self.end_of_turn_ids)
        self._ends = re.compile(rf"(?:(?:{ends})\s*)+\Z" if ends else "(?!)")
        # What others wrote holds no control token at all; the system's and the assistant's own words may hold those
        # that the model itself says (<think>, <tool_call>), but none that opens or ends a turn.
        turns |= {str(t) for t in (self.tokenizer.bos_token, self.tokenizer.eos_token) if t is not None}
        self._turns = pattern(turns)
        self._control = pattern(self._texts.special | turns | {t for t in self._texts.atoms if t in source})

    @property
    def end_of_turn_ids(self) -> tuple[int, ...]:
        """Ids at which generation should stop: the template's end-of-turn token and EOS."""
        ids = (self._texts.last_atom(self._ending), self.tokenizer.eos_token_id)
        return tuple(dict.fromkeys(i for i in ids if i is not None))

    def prompt_ids(self, record: Record) -> list[int]:
        """(p,) what the model sees at inference, p >= 1."""
        ids: list[int] = self.encode([_with_answers(record, ())])[0].prompt.tolist()
        return ids

    def completion_ids(self, record: Record, completion: Completion) -> list[int]:
        """(c,) what the model is trained to say after `prompt_ids(record)`."""
        return self.encode([_with_answers(record, (completion,))])[0].completions[0]

    def render(self, record: Record, completion: Completion | None = None) -> str:
        """A chat record as the template prints it: the prompt as at inference, or with `completion` the conversation.

        Raises ModelError without a template, DataError where the template refuses the conversation.
        """
        assert not isinstance(record.prompt, str)
        quotes = Quotes()
        return quotes.unquote(self._print(record, self._parts(record, self._or_none(quotes)), completion, quotes))

    def encode(self, records: Sequence[Record]) -> list[Encoded]:
        """Tokenise records in one batch. Raises as `render`, and DataError where a rendered prompt is no beginning of
        its conversation, or is empty while the tokenizer has no BOS token."""
        rows = self._rows(records)
        starts = self._starts(rows)
        tails = [row.prompt[start.head :] for row, start in zip(rows, starts, strict=True)]
        said = [(tail + a.text, row.quotes) for row, tail in zip(rows, tails, strict=True) for a in row.answers]
        wholes = iter(self._texts.batch(said))
        ends = set(self.end_of_turn_ids)
        done: list[Encoded] = []
        for record, start, row in zip(records, starts, rows, strict=True):
            answers: list[list[int]] = []
            flaws: list[Flaw] = []
            for answer in row.answers:
                ids, flaw = next(wholes), answer.flaws | row.flaws
                if ids[: len(start.tail)] == start.tail:
                    ids = ids[len(start.tail) :]
                else:
                    flaw |= Flaw.STRADDLED
                    ids = self._texts.quoted(answer.text, row.quotes, continues=True)
                answers.append(ended(ids, answer.end, ends))
                flaws.append(flaw)
            done.append(Encoded(self._prompt_ids(record, start.ids), answers, flaws))
        self._read_back(rows, starts, done)
        return done

    def explain(self, record: Record, index: int, flaw: Flaw) -> str:
        """One flaw of a completion, shown on its text."""
        row = self._row(record)
        answer = row.answers[index]
        prompt, trained = row.quotes.unquote(row.prompt), row.quotes.unquote(answer.text)
        if flaw in (Flaw.ADDED, Flaw.DROPPED):
            return f"given {cite(answer.said)}, trained {cite(trained)}"
        if flaw == Flaw.UNPRINTED:
            return f"not printed: {cite(self._unprinted.first(record, prompt) or '')}"
        if flaw == Flaw.CONTROL:
            return " ".join(dict.fromkeys([*self._spelled(record), *self._spelled(record, record.completions[index])]))
        if flaw == Flaw.LOSSY:
            return next(
                (
                    f"given {cite(text[at:])}, read back {cite(again[at:])}"
                    for text, again in zip(
                        (prompt, trained), self._texts.decode(self._texts.ids([prompt, trained])), strict=True
                    )
                    for text, again in [(self._texts.bare(text), self._texts.bare(again))]
                    for at in [max(0, _common(text, again) - 10)]
                    if text != again
                ),
                "",
            )
        return f"{cite(prompt[-30:])} | {cite(trained, 30)}"

    def unread_keywords(self, record: Record) -> list[str]:
        """Names in the record's template_kwargs that the template never mentions, so that they change nothing."""
        return [name for name in record.template_kwargs or () if name not in self._words]

    # Text

    def _rows(self, records: Sequence[Record]) -> list[_Row]:
        rows: list[_Row] = []
        problems: list[DataError] = []
        for record in records:
            try:
                rows.append(self._row(record))
            except DataError as error:
                problems.append(error)
                if isinstance(error.__cause__, TimeoutError):  # waiting for all of them takes hours
                    break
        if problems:
            first = problems[0]
            more = f" ({len(problems) - 1} more rows fail)" if len(problems) > 1 else ""
            raise DataError(first.message + more, line=first.line, row=first.row, problems=tuple(problems)) from first
        return rows

    def _row(self, record: Record) -> _Row:
        quotes = Quotes()
        if isinstance(record.prompt, str):
            return self._text_row(record, record.prompt, quotes)
        if not record.prompt:
            raise _error("the prompt has no messages; a chat starts with at least one", record)
        parts = self._parts(record, self._or_none(quotes))
        spelled = quotes.tokens if self.special_tokens == "text" else self._spelled(record)
        prompt = self._print(record, parts, None, quotes)
        flaws = Flaw.CONTROL if spelled else Flaw(0)
        if self._unprinted.first(record, quotes.unquote(prompt)) is not None:
            flaws |= Flaw.UNPRINTED
        answers = [self._answer(record, completion, parts, prompt, quotes) for completion in record.completions]
        return _Row(prompt, answers, flaws, quotes)

    def _text_row(self, record: Record, prompt: str, quotes: Quotes) -> _Row:
        """A text goes as it is: whoever writes the whole of what the model reads writes its control tokens, too."""
        answers = []
        for completion in record.completions:
            flaws = Flaw.CONTROL if self._spelled(record, completion) else Flaw(0)
            if set(_message(completion)) - {"role", "content"}:
                flaws |= Flaw.DROPPED  # a text has no place for tool calls
            end = self._eos() if completion.complete else None
            answers.append(_Answer(completion.text, end, completion.text, flaws))
        return _Row(prompt, answers, Flaw.CONTROL if self._spelled(record) else Flaw(0), quotes)

    def _answer(self, record: Record, completion: Completion, parts: _Parts, prompt: str, quotes: Quotes) -> _Answer:
        """What the template prints of an answer behind the prompt.

        An answer that opens its own thought, or goes on in one that the prompt has opened, is the given text: a
        template that prints a thought of its own in front, or takes this one away, is not followed there.
        """
        message = self._said(completion)
        alone = set(message) <= {"role", "content"}
        opening = self._opening(record, prompt) if alone else ""
        said = self._quote(message.get("content") or "", quotes, self._turns)
        answer = behind(said, opening)
        whole = self._print(record, parts, completion, quotes)
        if whole.startswith(prompt):
            body, ending = self._split_ending(whole[len(prompt) :])
            if alone and squashed(body) != squashed(answer) and own_thought(said, body, opening, completion.complete):
                body = answer
        elif goes_on(said, opening, completion.complete):
            body, ending = answer, self._split_ending(whole)[1]
        else:
            raise _no_prefix(record, completion, quotes.unquote(prompt), quotes.unquote(whole))
        flaws = changes(message, quotes.unquote(answer), quotes.unquote(body), self._texts)
        if self._spelled(record, completion):
            flaws |= Flaw.CONTROL
        shown = quotes.unquote(said) if alone else _shown(message)
        if not completion.complete:
            return _Answer(body, None, shown, flaws)
        end = self._texts.last_atom(ending)
        return _Answer(body + ending, self._eos() if end is None else end, shown, flaws)

    def _spelled(self, record: Record, completion: Completion | None = None) -> list[str]:
        """The control tokens that the prompt's own text spells, or the completion's."""
        seen = Quotes()
        if isinstance(record.prompt, str):
            text = record.prompt if completion is None else self._ends.sub("", completion.text)
            seen.quote(text, self._control)
        elif completion is None:
            self._parts(record, seen)
        else:
            self._quoted_message(self._said(completion), seen)
        return seen.tokens

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
            own = _common(opened, earlier)
            self._openings[name] = next((opened[m.start() :] for m in TAG.finditer(opened) if m.end() > own), "")
        opening = self._openings[name]
        return opening if prompt.endswith(opening) else ""

    def _said(self, completion: Completion) -> Message:
        """The answer as a message, without the end-of-turn tokens that collected answers often carry as text."""
        message = _message(completion)
        return message | {"content": self._ends.sub("", completion.text)} if completion.text else message

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
        for text in (tail[: _common(tail, middle)], tail):
            atoms = list(self._texts.atom.finditer(text))
            if atoms:
                # EOS is sure; what else follows an answer may already belong to the next turn, as in Command R7B.
                end = next((m for m in atoms if m.group() == self.tokenizer.eos_token), atoms[-1])
                return tail, text[: end.end()], turns
        return tail, "", turns

    def _print(self, record: Record, parts: _Parts, completion: Completion | None, quotes: Quotes) -> str:
        """`render`, quoted."""
        messages, tools, kwargs = parts
        if self.tokenizer.chat_template is None:
            raise ModelError(NO_TEMPLATE)
        if completion is not None:
            messages = [*messages, self._quoted_message(self._said(completion), self._or_none(quotes))]
        try:
            return self._printer.print(messages, tools, kwargs, prompt=completion is None)
        except RENDER_ERRORS as error:
            raise _error(
                f"the chat template cannot print this conversation: {error or type(error).__name__}. Change the row, "
                "or the template with --chat-template FILE|plain",
                record,
                completion,
            ) from error

    def _parts(self, record: Record, quotes: Quotes | None) -> _Parts:
        """Messages, tools and keywords of a prompt as the template gets them."""
        assert not isinstance(record.prompt, str)
        tools = None if record.tools is None else list(record.tools)
        kwargs = self._keywords(record)
        last = self._last[quotes is not None]
        if len(last.messages) > len(record.prompt) or in_common(last.messages, record.prompt) < len(last.messages):
            last = _NOTHING
        try:
            if quotes is not None:
                quotes.go_on(last.quotes)
            new = record.prompt[len(last.messages) :]
            messages = last.quoted + [self._quoted_message(message, quotes) for message in new]
            self._last[quotes is not None] = _Quoted(record.prompt, messages, Quotes(quotes))
            if quotes is None:
                return messages, tools, kwargs
            return messages, quotes.quote(tools, self._control), quotes.quote(kwargs, self._control)
        except ValueError as error:
            raise _error(f"the row cannot be read: {error}. Leave it out", record) from error

    def _quoted_message(self, message: Message, quotes: Quotes | None) -> Message:
        message = with_objects(message)
        if message.get("role") == "assistant" and isinstance(message.get("content"), str):
            message = message | {"content": self._ends.sub("", message["content"])}
        if quotes is None:
            return message
        own = message.get("role") in ("assistant", "system", "developer")
        control = self._turns if own else self._control
        return {key: value if key == "role" else quotes.quote(value, control) for key, value in message.items()}

    def _or_none(self, quotes: Quotes) -> Quotes | None:
        """None where control tokens in messages are tokens."""
        return quotes if self.special_tokens == "text" else None

    def _quote(self, text: str, quotes: Quotes, control: re.Pattern[str]) -> str:
        return str(quotes.quote(text, control)) if self.special_tokens == "text" else text

    def _keywords(self, record: Record) -> dict[str, Any]:
        """The record's template_kwargs that the template reads. Raises DataError for names that are not the row's to
        give: another template, special tokens, options of transformers."""
        for name in record.template_kwargs or ():
            if name in self._reserved:
                raise _error(
                    f'template_kwargs may not hold "{name}": a row may set the switches that its chat template reads '
                    '(such as "enable_thinking"), neither the template itself nor how it is applied. Leave it out',
                    record,
                )
        return {k: v for k, v in (record.template_kwargs or {}).items() if k in self._words}

    # Ids

    def _starts(self, rows: list[_Row]) -> list[Start]:
        """The ids of the prompts; of long ones that begin like the one before only what is new is tokenised."""
        starts = [self._growing.start(row.prompt, row.quotes) for row in rows]
        others = [(row.prompt, row.quotes) for row, start in zip(rows, starts, strict=True) if start is None]
        whole = (Start(0, np.array(ids, np.int32), ids, False) for ids in self._texts.batch(others))
        return [next(whole) if start is None else start for start in starts]

    def _read_back(self, rows: list[_Row], starts: list[Start], encoded: list[Encoded]) -> None:
        """Note the rows whose text the tokenizer does not give back."""
        answers = [
            ids if answer.end is None else ids[:-1]
            for row, one in zip(rows, encoded, strict=True)
            for answer, ids in zip(row.answers, one.completions, strict=True)
        ]
        again = iter(self._texts.decode([*(start.tail for start in starts), *answers]))
        lost = [
            not self._texts.same(row.quotes.unquote(row.prompt[start.head :]), next(again)) or start.lost
            for row, start in zip(rows, starts, strict=True)
        ]
        for row, one, prompt_lost in zip(rows, encoded, lost, strict=True):
            for i, answer in enumerate(row.answers):
                same = self._texts.same(self._ends.sub("", row.quotes.unquote(answer.text)), next(again))
                one.flaws[i] |= Flaw(0) if same and not prompt_lost else Flaw.LOSSY

    def _prompt_ids(self, record: Record, ids: Ids) -> Ids:
        if isinstance(record.prompt, str):
            ids = np.concatenate([np.array(self.text_prefix, np.int32), ids])
        if len(ids):
            return ids
        if self.tokenizer.bos_token_id is None:
            raise _error(
                "the prompt is empty and the tokenizer has no BOS token to stand for it: give a prompt", record
            )
        return np.array([self.tokenizer.bos_token_id], np.int32)

    def _eos(self) -> int:
        if self.tokenizer.eos_token_id is None:
            raise ModelError(
                "the tokenizer has no EOS token, so an answer cannot end: set eos_token in the model's folder"
            )
        return int(self.tokenizer.eos_token_id)

    def _text_prefix(self) -> list[int]:
        """The special tokens that the tokenizer puts before a text."""
        marked = list(self.tokenizer("a")["input_ids"])
        bare = list(self.tokenizer("a", add_special_tokens=False)["input_ids"])
        starts = [i for i in range(len(marked)) if marked[i : i + len(bare)] == bare]
        return marked[: starts[0]] if starts else []

    def _plain(self) -> str:
        return ("{{- bos_token }}" if self.tokenizer.bos_token_id in self.text_prefix else "") + PLAIN


def _common(a: str, b: str) -> int:
    """Length of the longest common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _shown(message: Message) -> str:
    return json.dumps({k: v for k, v in message.items() if k != "role" and v}, ensure_ascii=False, default=str)


def _with_answers(record: Record, completions: tuple[Completion, ...]) -> Record:
    return Record(record.id, record.prompt, completions, (), record.source, record.tools, record.template_kwargs)


def _message(completion: Completion) -> Message:
    content = completion.content
    return {"role": "assistant", **({"content": content} if isinstance(content, str) else content)}


def _error(message: str, record: Record, completion: Completion | None = None) -> DataError:
    at = completion or (record.completions[0] if record.completions else None)
    return DataError(message, line=at.line if at else None, row=completion.id if completion else record.id)


def _no_prefix(record: Record, completion: Completion, prompt: str, whole: str) -> DataError:
    at = _common(prompt, whole)
    return _error(
        "the chat template prints the prompt differently once the answer follows, so the two cannot be separated: "
        f"at character {at} the prompt has {prompt[at : at + 30]!r}, the conversation {whole[at : at + 30]!r}. "
        "Set the template's switches in the row (for thinking models often chat_template_kwargs "
        '{"enable_thinking": false}), give the answer as the template wants it (with its reasoning), or pass '
        "--chat-template FILE|plain",
        record,
        completion,
    )
