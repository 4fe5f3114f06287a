"""Public data and training formats with graded or ranked answers to a prompt: UltraFeedback, Nectar, HelpSteer's
ratings, NeMo-RL and OpenRLHF.

Grades are scores, more is better. Of ranks (the best has the lowest) the score is the negative, and neighbours in rank
are pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from prospect.errors import DataError
from prospect.feedback import messages as chat
from prospect.feedback.imports.common import list_of, object_of, origin
from prospect.feedback.imports.comparisons import Answer, answers_record, helpsteer_prompt, question
from prospect.feedback.readers import FeedbackLine, Layout, LeftOut, number
from prospect.feedback.records import Pair, Prompt, Record

BY_MODEL = "a model gave these grades, and no person"


def ranked(
    line: FeedbackLine, prompt: Prompt, answers: Sequence[tuple[Answer, float | None]], id: str = ""
) -> list[Record]:
    """A record of answers with their ranks."""
    record_answers = [answer._replace(score=None if rank is None else -rank) for answer, rank in answers]
    order = sorted((rank, i) for i, (_, rank) in enumerate(answers) if rank is not None)
    pairs = [Pair(i, j) for (a, i), (b, j) in pairwise(order) if a < b]
    return [answers_record(line, prompt, record_answers, pairs, id)]


def _objects(line: FeedbackLine, column: str) -> list[dict[str, Any]]:
    """A list with at least one object."""
    values = list_of(line.get(column), column)
    if not values or not all(isinstance(value, dict) for value in values):
        raise DataError(f"{column} must be a non-empty list of objects, not {chat.excerpt(values)}")
    return values


def ultrafeedback(line: FeedbackLine) -> list[Record]:
    """An instruction with answers that GPT-4 graded by four aspects: the score is their mean, or the aspect that
    `--judgement` names. `overall_score` is not read, since it contradicts the aspects in places."""
    aspect = line.judgements.name
    answers = []
    for i, value in enumerate(_objects(line, "completions")):
        ratings = {
            name: _rating(object_of(part, f"annotations.{name}"), name)
            for name, part in object_of(value.get("annotations"), "annotations").items()
        }
        score = ratings.get(aspect) if aspect else number(value, "fine-grained_score")
        if score is None and not aspect and (known := [rating for rating in ratings.values() if rating is not None]):
            score = fmean(known)
        values = origin(line, model=value.get("model"), note=(value.get("critique"),))
        answers.append(
            Answer(str(i), chat.answer(value.get("response"), f"completions[{i}].response"), None, score, values)
        )
    if all(answer.score is None for answer in answers):
        raise LeftOut("no answer has a grade" + (f' named "{aspect}"' if aspect else ""))
    line.remark(BY_MODEL)
    return [answers_record(line, question(line.get("instruction"), "instruction"), answers)]


def _rating(annotation: dict[str, Any], name: str) -> float | None:
    """An aspect's rating, which is text; None for "N/A"."""
    value = annotation.get("Rating")
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return number({f"the rating of {name}": value}, f"the rating of {name}")


def nectar(line: FeedbackLine) -> list[Record]:
    """A dialogue with answers that GPT-4 ranked."""
    *turns, last = chat.transcript(line.get("prompt"), "prompt")
    if last["content"]:
        raise DataError('prompt must end with "\\n\\nAssistant: " and nothing behind it, since the answers follow')
    answers = [
        (
            Answer(
                str(i),
                chat.answer(value.get("answer"), f"answers[{i}].answer"),
                origin=origin(line, model=value.get("model")),
            ),
            number(value, "rank"),
        )
        for i, value in enumerate(_objects(line, "answers"))
    ]
    line.remark(BY_MODEL)
    return ranked(line, tuple(turns), answers)


_HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


def helpsteer(line: FeedbackLine) -> list[Record]:
    """An answer with ratings from 0 to 4; the score is its helpfulness, or what `--judgement` names."""
    name = line.judgements.name or _HELPSTEER[0]
    if name not in _HELPSTEER:
        raise DataError(f'has no judgement "{name}". Known: {", ".join(_HELPSTEER)}')
    score = number(line.values, name)
    if score is None:
        raise LeftOut(f"no {name}")
    if not line.judgements.name:
        line.remark(f"the score is {name}; --judgement reads one of {', '.join(_HELPSTEER[1:])} instead")
    answer = Answer("0", chat.answer(line.get("response"), "response"), None, score)
    return [answers_record(line, helpsteer_prompt(line.get("prompt")), [answer])]


def nemo_rl(line: FeedbackLine) -> list[Record]:
    """NeMo-RL's preferences: {"context": [message], "completions": [{"rank", "completion": [message]}]}."""
    context, answers = line.get("context"), []
    for i, value in enumerate(_objects(line, "completions")):
        where = f"completions[{i}]"
        rank = number(value, "rank")
        if rank is None:
            raise DataError(f"{where} has no rank. Expected 0 for the best, 1 for the next and so on")
        answers.append((Answer(str(i), chat.answer(value.get("completion"), where)), rank))
    prompt: Prompt = (
        question(context, "context") if isinstance(context, str) and not context.lstrip().startswith("[")
        else chat.messages(list_of(context, "context"), "context")
    )  # fmt: skip
    return ranked(line, prompt, answers)


def openrlhf(line: FeedbackLine) -> list[Record]:
    """OpenRLHF's samples with the reward model's score: {"input", "output", "reward"}."""
    prompt, score = chat.prompt(line.get("input"), "input"), number(line.values, "reward")
    if score is None:
        raise LeftOut("no reward")
    line.remark("a reward model gave these scores, and no person")
    answer = Answer("0", chat.answer(line.get("output"), "output"), None, score)
    return [answers_record(line, question(prompt, "input") if isinstance(prompt, str) else prompt, [answer])]


LAYOUTS = (
    Layout(
        "ultrafeedback",
        ("instruction", "completions"),
        ultrafeedback,
        ("models", "correct_answers", "incorrect_answers"),
        ("completions",),
        objects=("completions",),
        thumbs=None,
    ),
    Layout(
        "nectar",
        ("prompt", "answers"),
        nectar,
        ("num_responses", "turns", "good_natured"),
        ("answers",),
        objects=("answers",),
        thumbs=None,
        looks=lambda row: chat.is_transcript(row.get("prompt")),
    ),
    Layout("helpsteer", ("prompt", "response", "helpfulness"), helpsteer, (), _HELPSTEER, thumbs=None),
    Layout(
        "nemo-rl",
        ("context", "completions"),
        nemo_rl,
        (),
        ("completions",),
        objects=("context", "completions"),
        thumbs=None,
    ),
    Layout("openrlhf", ("input", "output", "reward"), openrlhf, (), ("reward",), objects=("input",), thumbs=None),
)
