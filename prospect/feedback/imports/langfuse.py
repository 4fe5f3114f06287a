"""Langfuse: traces and observations with their scores, as the interface, the API or a blob export writes them.

A score judges an observation, or a trace: then the last generation of it is meant, or the trace's own input and output.
Names are trace_id or traceId. A score of source EVAL is a model's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from prospect.errors import DataError
from prospect.feedback import messages as chat
from prospect.feedback.imports.common import api_answer, api_prompt, bad_row, camel, either, list_of, origin
from prospect.feedback.imports.langsmith import JUDGED_BY_MODEL
from prospect.feedback.readers import FeedbackLine, Judgements, Layout, LeftOut, Parts, SourceRow
from prospect.feedback.records import Record

_NO_THUMB = {"TEXT": "a comment", "CORRECTION": "a corrected answer"}

Score = dict[str, Any]


def join(parts: Parts) -> Iterator[SourceRow]:
    """A row per score: the observation or trace that it judges, with one "judgement"."""
    judgements = parts.judgements
    of_observation: dict[Any, list[tuple[int, Score]]] = {}
    of_trace: dict[Any, list[tuple[int, Score]]] = {}
    for file, number, row in parts.rows.get("langfuse-scores", ()):
        if not isinstance(row, dict):
            yield file, number, row
            continue
        try:
            if not _files_score(row, number, judgements, of_observation, of_trace):
                raise DataError("a score must name its trace or its observation by id")
        except DataError as error:
            yield file, number, bad_row(row, error.message)
    last: dict[Any, tuple[Any, SourceRow]] = {}
    for file, number, row in parts.rows.get("langfuse-observations", ()):
        if not isinstance(row, dict):
            yield file, number, row
            continue
        yield from _with_scores((file, number, row), of_observation.pop(_id(row.get("id")), []))
        trace, start = _id(either(row, "trace_id")), str(either(row, "start_time"))
        if trace in of_trace and row.get("type") == "GENERATION" and (trace not in last or start >= last[trace][0]):
            last[trace] = start, (file, number, row)
    for file, number, row in chain(*(parts.rows.get(name, ()) for name in ("langfuse", "langfuse-trace"))):
        if not isinstance(row, dict):
            yield file, number, row
            continue
        try:
            yield from _rows_of_trace((file, number, row), judgements, of_observation, of_trace, last)
        except DataError as error:
            yield file, number, bad_row(row, error.message)
    for trace, (_, observation) in last.items():  # traces whose own row was not given
        yield from _with_scores(observation, of_trace.pop(trace, []))
    for scores in (*of_observation.values(), *of_trace.values()):
        for number, _ in scores:
            judgements.leave_out(
                "what the score judges is not in the export. Give observations and traces, too", number
            )


def _rows_of_trace(
    place: SourceRow,
    judgements: Judgements,
    of_observation: dict[Any, list[tuple[int, Score]]],
    of_trace: dict[Any, list[tuple[int, Score]]],
    last: dict[Any, tuple[Any, SourceRow]],
) -> Iterator[SourceRow]:
    """The scores of a trace, which may hold its observations and scores."""
    file, number, row = place
    trace = row["trace"] if isinstance(row.get("trace"), dict) else row
    id = _id(trace.get("id"))
    inner = chat.from_json(row.get("scores") or [], "scores")
    for score in _as_objects(inner, id):
        _files_score(score, number, judgements, of_observation, of_trace)
    observations = [o for o in list_of(row.get("observations"), "observations") if isinstance(o, dict)]
    for observation in observations:
        yield from _with_scores((file, number, observation), of_observation.pop(_id(observation.get("id")), []))
    scores = of_trace.pop(id, [])
    generations = sorted(
        (o for o in observations if o.get("type") == "GENERATION"), key=lambda o: str(either(o, "start_time"))
    )
    judged = (file, number, trace)
    if trace.get("input") in (None, "") or trace.get("output") in (None, ""):
        if generations:
            judged = (file, number, generations[-1])
        elif id in last:
            judged = last[id][1]
    last.pop(id, None)
    if scores:
        yield from _with_scores(judged, scores)
    elif not inner and not observations:
        judgements.leave_out("a trace without a score", number)


def _as_objects(scores: Any, trace: Any) -> Iterator[Score]:
    """Scores as objects. The interface writes {"user-feedback": ["1.0"]}, and not who gave them; ids alone refer to
    a file of scores."""
    if isinstance(scores, dict):
        for name, values in scores.items():
            for value in values if isinstance(values, list) else [values]:
                number = value
                if isinstance(value, str):
                    try:
                        number = float(value)
                    except ValueError:
                        number = value
                yield {"name": name, "value": number, "traceId": trace}
    elif isinstance(scores, list):
        yield from ({"traceId": trace, **score} for score in scores if isinstance(score, dict))
    else:
        raise DataError(
            f"scores must be a list of scores, or an object of names and values, not {chat.excerpt(scores)}"
        )


def _files_score(
    score: Score,
    number: int,
    judgements: Judgements,
    of_observation: dict[Any, list[tuple[int, Score]]],
    of_trace: dict[Any, list[tuple[int, Score]]],
) -> bool:
    """Put a score to what it judges, or leave it out; False where it names nothing."""
    name, kind = score.get("name"), str(either(score, "data_type"))
    observation, trace = _id(either(score, "observation_id")), _id(either(score, "trace_id"))
    if observation is None and trace is None:
        return False
    if not judgements.counts(by_model=score.get("source") == "EVAL"):
        judgements.leave_out(JUDGED_BY_MODEL if judgements.by == "person" else "judged by a person", number)
    elif kind in _NO_THUMB:
        judgements.leave_out(f"a score that is {_NO_THUMB[kind]}", number)
    elif _value(score) is None:
        judgements.leave_out("a score without a value", number)
    elif judgements.choose([str(name)], number) is None:
        judgements.leave_out(f'a score with another name than "{judgements.name}"', number)
    else:
        home = of_trace if observation is None else of_observation
        home.setdefault(trace if observation is None else observation, []).append((number, score))
    return True


def _with_scores(place: SourceRow, scores: list[tuple[int, Score]]) -> Iterator[SourceRow]:
    file, number, row = place
    for _, score in scores:
        yield file, number, {**row, "judgement": score}


def _id(value: Any) -> Any:
    return value if isinstance(value, str) and value else None


def _value(score: Mapping[str, Any]) -> Any:
    """What a score says: a number, a boolean, or the word of a category."""
    value, word = score.get("value"), either(score, "string_value")
    if either(score, "data_type") == "CATEGORICAL" and word is not None:
        return word
    return word if value is None else value


def judged(line: FeedbackLine) -> list[Record]:
    """An observation or a trace, with one score."""
    score = line.values.get("judgement")
    if not isinstance(score, dict):
        raise DataError("has no score")
    if line.get("output") in (None, ""):
        raise LeftOut("no output: the call failed, or the export is without it")
    prompt, answer = api_prompt(line.get("input"), "input"), api_answer(line.get("output"), "output")
    if isinstance(prompt, str) and not isinstance(answer, str):
        prompt = ({"role": "user", "content": prompt},)
    label, grade = line.judgement(_value(score))
    if "source" not in score:
        line.remark("the export does not say who gave the scores; they count as people's")
    values = origin(
        line,
        by=either(score, "author_user_id") or either(line.values, "user_id"),
        at=score.get("timestamp") or either(score, "created_at") or line.get("timestamp"),
        model=either(line.values, "provided_model_name") or line.get("model"),
        note=(score.get("comment"),),
        conversation=either(score, "session_id") or either(line.values, "session_id") or either(score, "trace_id"),
    )
    id = str(score.get("id") or line.id)
    completion = line.completion(id, answer, label, grade, values)
    return [line.record(prompt, (completion,), id=id)]


def thumbs(row: Mapping[str, Any]) -> Iterator[Any]:
    score = row.get("judgement")
    if isinstance(score, dict):
        yield _value(score)


_NAMES = ("user_id", "session_id", "timestamp", "comment", "source", "author_user_id", "observation_id", "string_value")
_READS = (*_NAMES, *map(camel, _NAMES), "scores", "observations", "provided_model_name", "providedModelName", "model")
_OBJECTS = ("input", "output", "metadata", "scores", "observations", "trace", "judgement")

LAYOUTS = (
    Layout(
        "langfuse-scores",
        ("trace_id|traceId", "name", "value", "data_type|dataType"),
        judged,
        _READS,
        ("value",),
        objects=_OBJECTS,
        thumbs=thumbs,
        join=join,
    ),
    Layout(
        "langfuse-observations",
        ("trace_id|traceId", "type", "input", "output", "start_time|startTime"),
        judged,
        _READS,
        ("judgement",),
        objects=_OBJECTS,
        thumbs=thumbs,
        join=join,
    ),
    Layout(
        "langfuse",
        ("input", "output", "timestamp", "user_id|userId"),
        judged,
        _READS,
        ("scores", "judgement"),
        objects=_OBJECTS,
        thumbs=thumbs,
        join=join,
    ),
    Layout(
        "langfuse-trace",
        ("trace", "observations"),
        judged,
        _READS,
        ("scores", "judgement"),
        objects=_OBJECTS,
        thumbs=thumbs,
        join=join,
    ),
)
