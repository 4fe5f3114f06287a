"""A tokenizer's chat template, made safe for training: where the prompt ends, and which token ends the answer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from prospect.errors import DataError, ModelError
from prospect.feedback.records import Completion, Message, Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
_PROBE = "Kvyxq"
# A template is a program of the model's authors: what it meets in a row it did not expect surfaces as any of these.
_RENDER_ERRORS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one record; `completions` are aligned with the record's, `straddled` counts those where a token
    stood across the end of the prompt."""

    prompt: list[int]
    completions: list[list[int]]
    straddled: int


@dataclass(frozen=True, slots=True)
class _Text:
    """A conversation as text; the answer ends with the token `end` (None: it was cut off and gets none)."""

    prompt: str
    answer: str
    end: int | None


class Template:
    """The way from records to ids for one tokenizer.

    `chat_template`: None for the tokenizer's own, "plain", or the path of a Jinja file; the one chosen is stored in the
    tokenizer, so that a saved model chats with it. `text_prefix`: the ids (BOS) that the tokenizer puts before a text.
    Raises ModelError for a template that cannot be read.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None) -> None:
        self.tokenizer: Any = tokenizer
        self.text_prefix = self._text_prefix()
        if chat_template is not None:
            self.tokenizer.chat_template = self._plain() if chat_template == "plain" else _read(chat_template)
        atoms = [str(t) for t in self.tokenizer.added_tokens_decoder.values()]
        atoms = sorted({t for t in (*atoms, *self.tokenizer.all_special_tokens) if t.strip()}, key=len, reverse=True)
        # No alternative at all would match everywhere; (?!) matches nowhere.
        self._atom = re.compile("|".join(map(re.escape, atoms)) or "(?!)")
        self._tail, self._ending = self._probe()

    @property
    def end_of_turn_ids(self) -> tuple[int, ...]:
        """Ids at which generation should stop: the template's end-of-turn token and EOS."""
        ids = (self._last_atom(self._ending), self.tokenizer.eos_token_id)
        return tuple(dict.fromkeys(i for i in ids if i is not None))

    def prompt_ids(self, record: Record) -> list[int]:
        """(p,) what the model sees at inference, p >= 1."""
        return self._prompt_ids(record, self._ids([self._prompt_text(record)])[0])

    def completion_ids(self, record: Record, completion: Completion) -> list[int]:
        """(c,) what the model is trained to say after `prompt_ids(record)`."""
        lone = Record(record.id, record.prompt, (completion,), (), record.source, record.tools, record.template_kwargs)
        return self.encode([lone])[0].completions[0]

    def render(self, record: Record, completion: Completion | None = None) -> str:
        """A chat record as the template prints it: the prompt as at inference, or with `completion` the conversation.

        Raises ModelError without a template, DataError where the template refuses the conversation.
        """
        assert not isinstance(record.prompt, str)
        if self.tokenizer.chat_template is None:
            raise ModelError(NO_TEMPLATE)
        messages = list(record.prompt) + ([] if completion is None else [_message(completion)])
        try:
            return self._render(messages, record.tools, record.template_kwargs, prompt=completion is None)
        except _RENDER_ERRORS as error:
            raise _error(
                f"the chat template cannot print this conversation: {error}. Change the row, or the template with "
                "--chat-template FILE|plain",
                record,
                completion,
            ) from error

    def encode(self, records: Sequence[Record]) -> list[Encoded]:
        """Tokenise records in one batch. Raises as `render`, and DataError where a rendered prompt is no beginning of
        its conversation, or is empty while the tokenizer has no BOS token."""
        prompts = [self._prompt_text(r) for r in records]
        texts = [[self._text(r, p, c) for c in r.completions] for r, p in zip(records, prompts, strict=True)]
        prompt_ids = self._ids(prompts)
        whole_ids = iter(self._ids([t.prompt + t.answer for row in texts for t in row]))
        ends = set(self.end_of_turn_ids)
        done: list[Encoded] = []
        for record, start, row in zip(records, prompt_ids, texts, strict=True):
            answers: list[list[int]] = []
            straddled = 0
            for text in row:
                ids = next(whole_ids)
                if ids[: len(start)] == start:
                    ids = ids[len(start) :]
                else:
                    straddled += 1
                    ids = self._continuation_ids(text.answer)
                answers.append(_end(ids, text.end, ends))
            done.append(Encoded(self._prompt_ids(record, start), answers, straddled))
        return done

    # Text

    def _prompt_text(self, record: Record) -> str:
        if isinstance(record.prompt, str):
            return record.prompt
        if not record.prompt:
            raise _error("the prompt has no messages; a chat starts with at least one", record)
        return self.render(record)

    def _text(self, record: Record, prompt: str, completion: Completion) -> _Text:
        if isinstance(record.prompt, str):
            return _Text(prompt, completion.text, self._eos() if completion.complete else None)
        whole = self.render(record, completion)
        if not whole.startswith(prompt):
            raise _no_prefix(record, completion, prompt, whole)
        body, ending = self._split_ending(whole[len(prompt) :])
        if not completion.complete:
            return _Text(prompt, body, None)
        end = self._last_atom(ending)
        return _Text(prompt, body + ending, self._eos() if end is None else end)

    def _split_ending(self, text: str) -> tuple[str, str]:
        """(what was said, what ends the turn: the text up to and with its last special token, or "")."""
        if self._tail and text.endswith(self._tail):
            return text[: -len(self._tail)], self._ending
        # Turns may end in another way than the probe's, as a tool call does.
        last = [m for m in self._atom.finditer(text) if not text[m.end() :].strip()]
        return (text[: last[0].start()], last[0].group()) if last else (text, "")

    def _probe(self) -> tuple[str, str]:
        """What the template prints after the last answer, and the part of it that ends the turn: what it also prints
        after earlier answers. (Phi-3 closes the whole conversation with one more token, which no answer ends with.)"""
        question, answer = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": _PROBE}
        try:
            tail = self._render([question, answer]).rpartition(_PROBE)[2]
            middle = self._render([question, answer, question]).rpartition(_PROBE)[2]
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(f"the chat template is not valid Jinja: {error} (line {error.lineno})") from error
        except _RENDER_ERRORS:
            return "", ""  # a template that cannot print this may still print the user's rows
        for text in (tail[: _common(tail, middle)], tail):
            atoms = list(self._atom.finditer(text))
            if atoms:
                # EOS is sure; what else follows an answer may already belong to the next turn, as in Command R7B.
                end = next((m for m in atoms if m.group() == self.tokenizer.eos_token), atoms[-1])
                return tail, text[: end.end()]
        return tail, ""

    def _render(
        self,
        messages: list[Message],
        tools: Iterable[dict[str, Any]] | None = None,
        kwargs: dict[str, Any] | None = None,
        *,
        prompt: bool = False,
    ) -> str:
        tools = None if tools is None else list(tools)
        text = self.tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=prompt, **(kwargs or {})
        )
        return str(text)

    # Ids

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        # verbose: lengths are our business, transformers need not warn of them.
        found = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        return list(found["input_ids"])

    def _prompt_ids(self, record: Record, ids: list[int]) -> list[int]:
        ids = self.text_prefix + ids if isinstance(record.prompt, str) else ids
        if ids:
            return ids
        if self.tokenizer.bos_token_id is None:
            raise _error(
                "the prompt is empty and the tokenizer has no BOS token to stand for it: give a prompt", record
            )
        return [self.tokenizer.bos_token_id]

    def _continuation_ids(self, text: str) -> list[int]:
        """Ids of a text that continues another. It is tokenised behind a line break where that stays a token of its
        own: SentencePiece-like tokenizers put a space before a text that starts."""
        anchor, ids, alone = self._ids(["\n", "\n" + text, text])
        return ids[len(anchor) :] if ids[: len(anchor)] == anchor else alone

    def _last_atom(self, text: str) -> int | None:
        atoms = self._atom.findall(text)
        return int(self.tokenizer.convert_tokens_to_ids(atoms[-1])) if atoms else None

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


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f'cannot read the chat template "{path}" ({error}). Expected "plain" or a Jinja file'
        ) from error


def _common(a: str, b: str) -> int:
    """Length of the longest common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _end(ids: list[int], end: int | None, ends: set[int]) -> list[int]:
    """`ids` with exactly one `end` at its end, or none; `ends` are all that may end a turn. Collected answers often
    carry their end token as text."""
    size = len(ids)
    while size and (ids[size - 1] in ends or ids[size - 1] == end):
        size -= 1
    return ids[:size] + ([] if end is None else [end])


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
