"""What columns of unknown names probably hold, by what people call them: the prompt, the answers, a judgement, who gave
it. Importers read fields that a user has named by it, and the error for an unknown layout proposes a --map."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from prospect.errors import DataError

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

_SYSTEM = ("system", "systemprompt", "systemmessage")


def plain(name: str) -> str:
    """A name in small letters, without signs between its words: "Bot Answer" as "botanswer"."""
    return re.sub(r"[\W_]+", "", name).casefold()


def called(meaning: str, names: Iterable[str]) -> list[str]:
    """Those of `names` that mean `meaning`, the surest first. Of "inputs.question" the last part counts."""
    ranks = _RANK[meaning]
    short = {name: plain(name.rpartition(".")[2]) for name in names}
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
