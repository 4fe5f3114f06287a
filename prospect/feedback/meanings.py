"""What columns of unknown names probably hold, by what people call them: the prompt, the answers, a judgement, who gave
it. Importers read fields that a user has named by it, and the error for an unknown layout proposes a --map."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from prospect.errors import DataError
from prospect.feedback import messages as chat
from prospect.feedback.messages import thumb, word_of

NAMES: Mapping[str, str] = {
    "prompt": "prompt question instruction query user_query user_prompt user_question user_message user_input request "
    "messages conversation chat history dialogue input inputs customer_message customer_question message task",
    "completion": "completion response answer output reply generation generated_text bot_answer bot_response bot_reply "
    "ai_response ai_answer ai_reply model_response model_output model_answer assistant_response assistant_reply "
    "agent_response assistant_message assistant prediction outputs",
    "chosen": "chosen chosen_response preferred preferred_response preferred_answer better better_response winner_text "
    "accepted_response good_response positive",
    "rejected": "rejected rejected_response dispreferred non_preferred less_preferred worse worse_response loser_text "
    "bad_response negative",
    "label": "label thumb thumbs rating feedback vote user_feedback user_rating feedback_rating csat kto_tag reaction "
    "verdict judgement judgment satisfaction satisfied helpful is_helpful is_good liked like good resolved solved "
    "accepted approved status outcome quality grade",
    "score": "score reward stars star_rating",
    "by": "by rater annotator reviewer rated_by judged_by user user_id username user_name userid customer requester "
    "email agent",
    "at": "at timestamp date time datetime created_at created created_on sent_at rated_at submitted_at updated_at",
    "model": "model model_name model_id llm bot_version",
    "note": "note comment comments remark reason explanation feedback_text feedback_comment user_comment",
    "conversation_id": "conversation conversation_id conversationid chat_id session_id session thread_id ticket_id "
    "ticket",
    "id": "id message_id messageid row_id uuid",
}
"""Per meaning the names that columns with it have, the surest first; case and signs between words do not count."""

_RANK = {
    meaning: {name.replace("_", ""): rank for rank, name in enumerate(names.split())}
    for meaning, names in NAMES.items()
}
_ORDER = {"left": 1, "right": 2, "first": 1, "second": 2} | {sign: i for i, sign in enumerate("abcd", 1)}
_NUMBERED = re.compile(r"(.*?)[\W_]*(\d|(?i:left|right|first|second)|(?<![A-Za-z])[A-Da-d]|(?<=[a-z])[A-D])")
"""A name that ends in a number, a side or a letter of its own: "answer_1", "text left", "responseA"."""

_NAME_IN_LIST = re.compile(r".*\[name=([^\]]*)\]\.value")
_SYSTEM = ("system", "systemprompt", "systemmessage")


def plain(name: str) -> str:
    """A name in small letters, without signs between its words: "Bot Answer" as "botanswer"."""
    return re.sub(r"[\W_]+", "", name).casefold()


def called(meaning: str, names: Iterable[str]) -> list[str]:
    """Those of `names` that mean `meaning`, the surest first. Of "inputs.question" the last part counts, of
    "scores[name=thumb].value" the name."""
    ranks = _RANK[meaning]
    short = {name: plain(_NAME_IN_LIST.sub(r"\1", name).rpartition(".")[2]) for name in names}
    return sorted((name for name in short if short[name] in ranks), key=lambda name: ranks[short[name]])


def numbered(names: Iterable[str]) -> list[str]:
    """The names of several answers, which differ in a number, a letter or a side alone ("answer_1", "answer_2"), in
    that order; none where no names do, or several groups."""
    groups: dict[str, dict[int, str]] = {}
    for name in names:
        if match := _NUMBERED.fullmatch(name):
            sign = match[2].casefold()
            groups.setdefault(plain(match[1]), {}).setdefault(_ORDER.get(sign, ord(sign[0]) - ord("0")), name)
    several = {stem: group for stem, group in groups.items() if len(group) > 1}
    if len(several) > 1:
        several = {stem: group for stem, group in several.items() if stem in _RANK["completion"]}
    return [group[place] for group in several.values() for place in sorted(group)] if len(several) == 1 else []


class Fields(NamedTuple):
    """What fields that a user has named hold: the prompt, the answers by name, and the names of the others."""

    prompt: Any
    answers: dict[str, Any]
    others: list[str]


def fields_of(values: Mapping[str, Any], place: str = "") -> Fields:
    """The prompt and the answers among fields with names of the user's; what is empty is no field. A system prompt
    goes before the question. Raises DataError, with the --map that says it (`place` is where the fields lie, such as
    "data."), where names do not tell which is which."""
    filled = {name: value for name, value in values.items() if value not in (None, "", [], {})}
    system = next((name for name in filled if plain(name) in _SYSTEM), None)
    texts = [name for name, value in filled.items() if name != system and isinstance(value, str | list | dict)]
    answers = numbered(texts) or called("completion", texts)[:1]
    prompts = called("prompt", [name for name in texts if name not in answers])[:1]
    rest = [name for name in texts if name not in (*answers, *prompts)]
    if len(rest) == 1 and bool(answers) != bool(prompts):
        answers, prompts, rest = answers or rest, prompts or rest, []
    if not answers or not prompts:
        names = ", ".join(f'"{name}"' for name in texts[:30]) or "none has text"
        raise DataError(
            f"which of the fields ({names}) is the prompt, and which the answer? Say so: "
            f"--map {place}prompt={place}NAME,{place}response={place}NAME"
        )
    prompt = filled[prompts[0]]
    if system is not None:
        head = {"role": "system", "content": filled[system]}
        prompt = [head, *prompt] if isinstance(prompt, list) else [head, {"role": "user", "content": prompt}]
    others = [name for name in filled if name not in (*answers, *prompts, system)]
    return Fields(prompt, {name: filled[name] for name in answers}, others)


# A --map for a file of no known layout

_UP = (
    "up good great excellent like liked yes positive happy satisfied helpful useful resolved solved correct right pass "
    "passed accepted approved promoter 👍 😀 😊 🙂"
)
_DOWN = (
    "down bad poor terrible dislike disliked no negative unhappy unsatisfied dissatisfied unhelpful useless unresolved "
    "unsolved incorrect wrong fail failed rejected declined detractor 👎 😞 ☹ 🙁"
)
_NONE = ("", "null", "none", "n/a", "na", "-", "--", "unrated", "skipped", "not rated", "neutral", "passive")
_WORDS = dict.fromkeys(_UP.split(), "up") | dict.fromkeys(_DOWN.split(), "down") | dict.fromkeys(_NONE, "none")
"""What words of judgement probably mean: a proposal that the user reads, never what is read."""

_SIDES = ("chosen", "rejected")
_BESIDE = ("by", "at", "model", "note", "conversation_id")
_MOST_WORDS = 6


def propose(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, str], dict[str, str]]:
    """What --map and --labels would probably read `rows` as feedback: {new name: path} and {word: up, down, none, or
    "?" where only the user knows}; both empty where no prompt and answer can be made out."""
    values: dict[str, list[Any]] = {}
    for row in rows:
        for path, value in _paths(row, 3):
            values.setdefault(path, []).append(value)
    texts = [path for path, some in values.items() if all(isinstance(v, str) or chat.is_messages(v) for v in some)]
    named: dict[str, str] = {}

    def pick(meaning: str, paths: Iterable[str]) -> bool:
        free = called(meaning, (path for path in paths if path not in named.values()))
        if free:
            named[meaning] = free[0]
        return bool(free)

    if not (all(pick(side, texts) for side in _SIDES) or pick("completion", texts)) or not pick("prompt", texts):
        return {}, {}
    named = {"prompt": named.pop("prompt")} | named
    words: dict[str, str] = {}
    if "completion" in named:
        words = _judgement(values, named)
    for meaning in _BESIDE:
        pick(meaning, (path for path in values if path not in texts or not any(map(_is_long, values[path]))))
    return named, words


def _paths(value: Any, levels: int, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of everything in a row that says something and is no object, some `levels` deep."""
    if isinstance(value, Mapping):
        for key, part in value.items() if levels else ():
            yield from _paths(part, levels - 1, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value and all(isinstance(part, dict) and "name" in part for part in value):
        for part in value:
            if "value" in part:
                yield f"{path}[name={part['name']}].value", part["value"]
    elif value not in (None, "", []):
        yield path, value


def _judgement(values: Mapping[str, list[Any]], named: dict[str, str]) -> dict[str, str]:
    """Adds the column of thumbs or scores to what is `named`; the meaning of its words where they are no thumbs."""
    free = [path for path in values if path not in named.values()]
    telling = called("label", free) or called("score", free) or [path for path in free if path.endswith("].value")]
    for path in telling:
        words = sorted({word_of(value) for value in values[path]})
        if all(map(_is_thumb, values[path])):
            named["label"] = path
            return {}
        if all(map(_is_number, values[path])):
            named["score"] = path
            return {}
        if len(words) <= _MOST_WORDS and not any(map(_is_long, words)):
            named["label"] = path
            return {word: _WORDS.get(word, "?") for word in words}
    if both_ways := [path for path in free if {_is_thumb(value) for value in values[path]} == {True}]:
        named["label"] = both_ways[0]
    return {}


def _is_thumb(value: Any) -> bool:
    try:
        return bool(thumb(value))
    except DataError:
        return False


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and float(value) == float(value)
    except (TypeError, ValueError, OverflowError):
        return False


def _is_long(value: Any) -> bool:
    return isinstance(value, str) and len(value) > 60
