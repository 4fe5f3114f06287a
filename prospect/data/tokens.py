"""Records become token ids: what the model reads (the prompt) and what it is trained to say (the completion).

The prompt's ids are those the model sees at inference. A completion's ids are what follows them when the whole
conversation is tokenised; a complete one ends with exactly one end-of-turn token, one that was cut off with none:

    prompt      <|im_start|>user\\n2 + 2?<|im_end|>\\n<|im_start|>assistant\\n
    completion  4<|im_end|>                      (the line break that the template prints after it is left out)

Text prompts are tokenised as they are, with the special tokens that the tokenizer puts in front (BOS); their
completions end with EOS. Where what is trained is not simply what the row says, a Flaw tells so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from prospect.data.options import SpecialTokens
from prospect.data.text import Flaw, Renderer, TextRow, common, row_error, unprinted
from prospect.data.textids import GrowingIds, Ids, Start, TargetIds, TextIds
from prospect.feedback.records import Completion, Record, cite

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one record: the prompt's (p,), and of each of its completions (c,) with its flaws; where any has a
    target, that one's tokens of each."""

    prompt: Ids
    completions: list[Ids]
    flaws: list[Flaw]
    target_ids: list[TargetIds | None] = field(default_factory=list)


class Encoder:
    """The way from records to ids for one tokenizer: its chat template made safe for training.

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
        self._texts = TextIds(tokenizer)
        self._growing = GrowingIds(self._texts)
        begins = tokenizer.bos_token_id in self.text_prefix
        self._renderer = Renderer(tokenizer, self._texts, special_tokens, chat_template, begins)

    @property
    def end_of_turn_ids(self) -> tuple[int, ...]:
        """Ids at which generation should stop: the template's end-of-turn token and EOS."""
        return self._renderer.end_of_turn_ids

    def prompt_ids(self, record: Record) -> list[int]:
        """(p,) what the model sees at inference, p >= 1."""
        ids: list[int] = self.encode([replace(record, completions=(), pairs=())])[0].prompt.tolist()
        return ids

    def completion_ids(self, record: Record, completion: Completion) -> list[int]:
        """(c,) what the model is trained to say after `prompt_ids(record)`."""
        ids: list[int] = self.encode([replace(record, completions=(completion,), pairs=())])[0].completions[0].tolist()
        return ids

    def encode(self, records: Sequence[Record]) -> list[Encoded]:
        """Tokenise records in one batch.

        Raises ModelError without a template or an end token; DataError where the template refuses a conversation, a
        rendered prompt is no beginning of its conversation, a prompt is empty while the tokenizer has no BOS token, or
        the answers of a target have no place where each has a token of its own.
        """
        encoded = self._encode([_with_targets(record) for record in records])
        return [_fold_targets(record, one) for record, one in zip(records, encoded, strict=True)]

    def _encode(self, records: Sequence[Record]) -> list[Encoded]:
        """The same without a look at targets."""
        rows = self._renderer.rows(records)
        starts = self._starts(rows)
        joints = zip(rows, starts, strict=True)
        texts = [row.quotes.pieces(row.prompt[start.head :] + a.text) for row, start in joints for a in row.answers]
        wholes = iter(self._texts.quoted(texts))
        encoded: list[Encoded] = []
        for record, start, row in zip(records, starts, rows, strict=True):
            completions: list[Ids] = []
            flaws: list[Flaw] = []
            for answer in row.answers:
                ids, flaw = next(wholes), answer.flaws | row.flaws
                if ids[: len(start.tail)] == start.tail:
                    ids = ids[len(start.tail) :]
                else:
                    flaw |= Flaw.STRADDLED
                    ids = self._texts.quoted([row.quotes.pieces(answer.text)], continues=True)[0]
                completions.append(np.array(self._ended(ids, answer.end), np.int32))
                flaws.append(flaw)
            encoded.append(Encoded(self._prompt_ids(record, start.ids), completions, flaws))
        self._read_back(rows, starts, encoded)
        return encoded

    def explain(self, record: Record, index: int, flaw: Flaw) -> str:
        """One flaw of a completion, shown on its text."""
        row = self._renderer.row(record)
        answer = row.answers[index]
        prompt, trained = row.quotes.unquote(row.prompt), row.quotes.unquote(answer.text)
        if flaw in (Flaw.ADDED, Flaw.DROPPED):
            return f"given {cite(answer.source)}, trained {cite(trained)}"
        if flaw == Flaw.UNPRINTED:
            return f"not printed: {cite(unprinted(record, prompt) or '')}"
        if flaw == Flaw.CONTROL:
            return " ".join(
                dict.fromkeys(
                    [*self._renderer.spelled(record), *self._renderer.spelled(record, record.completions[index])]
                )
            )
        if flaw == Flaw.LOSSY:
            texts = [prompt, trained]
            for text, again in zip(texts, self._texts.decode(self._texts.ids(texts)), strict=True):
                text, again = self._texts.stripped(text), self._texts.stripped(again)
                if text != again:
                    at = max(0, common(text, again) - 10)
                    return f"given {cite(text[at:])}, read back {cite(again[at:])}"
            return ""
        return f"{cite(prompt[-30:])} | {cite(trained, 30)}"

    def unread_keywords(self, record: Record) -> list[str]:
        """Names in the record's template_kwargs that the template never mentions, so that they change nothing."""
        return self._renderer.unread_keywords(record)

    def _starts(self, rows: list[TextRow]) -> list[Start]:
        """The ids of the prompts; of long ones that begin like the one before only what is new is tokenised."""
        starts = [self._growing.start(row.prompt, row.quotes) for row in rows]
        others = [row.quotes.pieces(row.prompt) for row, start in zip(rows, starts, strict=True) if start is None]
        whole = (Start(0, np.array(ids, np.int32), ids, False) for ids in self._texts.quoted(others))
        return [next(whole) if start is None else start for start in starts]

    def _read_back(self, rows: list[TextRow], starts: list[Start], encoded: list[Encoded]) -> None:
        """Note the rows whose text the tokenizer does not give back."""
        answers = [
            ids.tolist() if answer.end is None else ids[:-1].tolist()
            for row, one in zip(rows, encoded, strict=True)
            for answer, ids in zip(row.answers, one.completions, strict=True)
        ]
        again = iter(self._texts.decode([*(start.tail for start in starts), *answers]))
        lossy = [
            not self._texts.same(row.quotes.unquote(row.prompt[start.head :]), next(again)) or start.lossy
            for row, start in zip(rows, starts, strict=True)
        ]
        for row, one, prompt_lossy in zip(rows, encoded, lossy, strict=True):
            for i, answer in enumerate(row.answers):
                same = self._texts.same(self._renderer.ends.sub("", row.quotes.unquote(answer.text)), next(again))
                one.flaws[i] |= Flaw(0) if same and not prompt_lossy else Flaw.LOSSY

    def _ended(self, ids: list[int], end: int | None) -> list[int]:
        """`ids` with exactly one `end` at its end, or none. Collected answers often carry their end token as text."""
        size, ends = len(ids), {*self.end_of_turn_ids, end}
        while size and ids[size - 1] in ends:
            size -= 1
        return ids[:size] + ([] if end is None else [end])

    def _prompt_ids(self, record: Record, ids: Ids) -> Ids:
        if isinstance(record.prompt, str):
            ids = np.concatenate([np.array(self.text_prefix, np.int32), ids])
        if len(ids):
            return ids
        if self.tokenizer.bos_token_id is None:
            raise row_error(
                "the prompt is empty and the tokenizer has no BOS token to stand for it: give a prompt", record
            )
        return np.array([self.tokenizer.bos_token_id], np.int32)

    def _text_prefix(self) -> list[int]:
        """The special tokens that the tokenizer puts before a text."""
        marked = list(self.tokenizer("a")["input_ids"])
        bare = list(self.tokenizer("a", add_special_tokens=False)["input_ids"])
        starts = [i for i in range(len(marked)) if marked[i : i + len(bare)] == bare]
        return marked[: starts[0]] if starts else []


# Targets


def _with_targets(record: Record) -> Record:
    """The record with the answers that its targets name behind its own."""
    named = [
        replace(completion, content=text, complete=True, target=())
        for completion in record.completions
        for text, _ in completion.target
    ]
    return replace(record, completions=(*record.completions, *named)) if named else record


def _fold_targets(record: Record, encoded: Encoded) -> Encoded:
    """The ids of such a record with those answers' as targets of its own."""
    count = len(record.completions)
    if len(encoded.completions) == count:
        return encoded
    others = iter(encoded.completions[count:])
    target_ids: list[TargetIds | None] = []
    for completion, ids in zip(record.completions, encoded.completions[:count], strict=True):
        named = [next(others).tolist() for _ in completion.target]
        target_ids.append(_target_ids(record, completion, ids.tolist(), named) if named else None)
    return Encoded(encoded.prompt, encoded.completions[:count], encoded.flaws[:count], target_ids)


def _target_ids(record: Record, completion: Completion, own: list[int], named: list[list[int]]) -> TargetIds:
    """Where the answers of a target first differ, and their tokens there."""
    place = min(common(named[0], other) for other in named[1:])
    tokens = [ids[place] for ids in named if len(ids) > place]
    if len(set(tokens)) < len(named):
        texts = [text for text, _ in completion.target]
        twice = [text for text, token in zip(texts, tokens, strict=False) if tokens.count(token) > 1] or texts
        raise row_error(
            f"the answers {', '.join(map(cite, twice[:2]))} of target have the same token where the answers of target "
            "first differ, so it cannot tell them apart. Name answers that differ in one token",
            record,
            completion,
        )
    if own[:place] != named[0][:place] or len(own) <= place:
        raise row_error(
            f"the answers of target, such as {cite(completion.target[0][0])}, share their first {place} tokens, but "
            "the row's own answer does not go on with these and one more. Let target name answers that begin like it, "
            "or that differ from the first token on",
            record,
            completion,
        )
    return TargetIds(place, np.array(tokens, np.int32))
