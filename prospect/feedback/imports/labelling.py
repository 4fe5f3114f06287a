"""Annotation tools, whose fields and questions have names of the user's: Argilla (nested as `to_json` writes it, flat
as `to_list(flatten=True)` and tables do) and Label Studio (JSON, JSON_MIN).

A word is a thumb, a number a score, a side or the name of an answer prefers it, and a ranking orders the answers.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from prospect.errors import DataError
from prospect.feedback import messages as chat
from prospect.feedback.imports.common import api_answer, api_prompt, bad_row, list_of, object_of, origin
from prospect.feedback.meanings import called, fields_of, plain
from prospect.feedback.readers import FeedbackLine, Judgements, Layout, LeftOut, Parts, SourceRow, identifier
from prospect.feedback.readers import number as grade
from prospect.feedback.records import Pair, Record

# A row with one judgement: {"id", "data": its fields, "place": where they lay, "judgement": {"value", "by", ...}}


def judged(line: FeedbackLine) -> list[Record]:
    """A record with one judgement of one of its answers, or of all of them."""
    judgement, place = object_of(line.get("judgement"), "the judgement"), str(line.get("place") or "")
    fields = fields_of(object_of(line.get("data"), "the fields"), place)
    if fields.others:
        line.remark(f"fields not read: {', '.join(fields.others)}")
    prompt = api_prompt(fields.prompt, "the prompt")
    answers = {name: api_answer(value, f'the answer "{name}"') for name, value in fields.answers.items()}
    if isinstance(prompt, str) and any(isinstance(answer, dict) for answer in answers.values()):
        prompt = ({"role": "user", "content": prompt},)
    values = origin(line, by=judgement.get("by"), at=judgement.get("at"), note=(judgement.get("note"),))
    id = identifier(judgement.get("id"), line.id)
    order, label, score = _reading(line, judgement, list(answers))
    if order:
        names = [name for equals in order for name in equals]
        rank = {name: i for i, equals in enumerate(order) for name in equals}
        completions = [line.completion(f"{id}/{name}", answers[name], None, None, values) for name in names]
        pairs = [Pair(names.index(a), names.index(b)) for a, b in itertools.combinations(names, 2) if rank[a] < rank[b]]
        if not pairs:
            raise LeftOut("all answers are ranked the same")
        return [line.record(prompt, tuple(completions), tuple(pairs), id=id)]
    names = judgement.get("of") or list(answers)
    if len(names) > 1:
        raise DataError(
            f"{chat.excerpt(judgement.get('value'))} is a judgement, but of which answer: {', '.join(names)}? Leave "
            f"all but one out: --ignore {','.join(place + name for name in names[1:])}"
        )
    return [line.record(prompt, (line.completion(id, answers[names[0]], label, score, values),), id=id)]


def _reading(
    line: FeedbackLine, judgement: Mapping[str, Any], names: Sequence[str]
) -> tuple[list[list[str]], bool | None, float | None]:
    """(answers in order of their rank, thumb, score) of a judgement, of which there is one."""
    value = judgement.get("value")
    if isinstance(value, list):
        return _order(value, names), None, None
    sides = judgement.get("sides")
    if (best := _preferred(value, sides or names)) is not None:
        if not sides and plain(str(value)) in _SIDES:
            line.remark(f"left and right are read as {names[0]} and {names[1]}: the export does not name them")
        return [[best], [name for name in names if name != best]], None, None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [], None, grade({"value": value}, "value")
    return [], *line.judgement(value)


_SIDES = ("left", "right")


def _preferred(value: Any, names: Sequence[str]) -> str | None:
    """The answer that a value prefers: by its name, or by its side."""
    if not isinstance(value, str) or len(names) < 2:
        return None
    by_name = {plain(name): name for name in names} | dict(zip(_SIDES, names[:2], strict=True))
    return by_name.get(plain(value))


def _order(value: list[Any], names: Sequence[str]) -> list[list[str]]:
    """The names of answers by rank, the best first; equals stand together."""
    ranks: dict[float, list[str]] = {}
    for part in value:
        name = _preferred(part.get("value"), names) if isinstance(part, dict) else None
        rank = part.get("rank") if isinstance(part, dict) else None
        if name is None or isinstance(rank, bool) or not isinstance(rank, int | float):
            raise DataError(
                f"a list is read as a ranking of the answers {', '.join(names)}, such as "
                f'[{{"value": "{names[0]}", "rank": 1}}, ...], and not {chat.excerpt(value)}'
            )
        ranks.setdefault(rank, []).append(name)
    return [ranks[rank] for rank in sorted(ranks)]


def thumbs(row: Mapping[str, Any]) -> Iterator[Any]:
    """The words of a row that are thumbs: no numbers, no sides, no names of answers."""
    judgement, data = row.get("judgement"), row.get("data")
    value = judgement.get("value") if isinstance(judgement, dict) else None
    names = (*_SIDES, *map(plain, data)) if isinstance(data, dict) else ()
    if isinstance(value, str | bool) and plain(str(value)) not in names:
        yield value


# Argilla

_META = ("id", "status", "_server_id", "inserted_at", "updated_at", "score")
"""Columns of a flat record that are neither field nor metadata."""


def argilla(parts: Parts) -> Iterator[SourceRow]:
    """A row per judgement: the record's fields with one "judgement"."""
    for name, take_apart, place in (("argilla", _nested, "fields."), ("argilla-flat", _flat, "")):
        for file, number, row in parts.rows.get(name, ()):
            if not isinstance(row, dict):
                yield file, number, row
                continue
            try:
                fields, responses = take_apart(row)
                chosen = list(_chosen(responses, parts.judgements, number))
            except DataError as error:
                yield file, number, bad_row(row, error.message)
                continue
            for judgement in chosen:
                yield file, number, {"id": row.get("id"), "data": fields, "place": place, "judgement": judgement}


Responses = dict[str, list[dict[str, Any]]]
"""Per question its responses and suggestions: {"value", "user_id", "status", "agent"}."""


def _nested(row: Mapping[str, Any]) -> tuple[dict[str, Any], Responses]:
    responses: Responses = {}
    for column in ("responses", "suggestions"):
        for question, values in object_of(row.get(column), column).items():
            for value in values if isinstance(values, list) else [values]:
                if not isinstance(value, dict) or "value" not in value:
                    raise DataError(f'{column}["{question}"] must hold objects with value, not {chat.excerpt(value)}')
                responses.setdefault(question, []).append(
                    {"value": value["value"], "status": value.get("status"), "by_model": column == "suggestions"}
                    | {"by": value.get("user_id") or value.get("agent")}
                )
    return object_of(row.get("fields"), "fields"), responses


def _flat(row: Mapping[str, Any]) -> tuple[dict[str, Any], Responses]:
    fields: dict[str, Any] = {}
    responses: Responses = {}
    for column, value in row.items():
        question, _, kind = column.partition(".")
        if kind == "responses":
            users, states = (_listed(row.get(f"{column}.{part}"), column) for part in ("users", "status"))
            for one, user, status in itertools.zip_longest(_listed(value, column), users, states):
                known = {"value": one, "by": user, "status": status, "by_model": False}
                responses.setdefault(question, []).append(known)
        elif kind == "suggestion" and value is not None:
            known = {"value": value, "by": row.get(f"{column}.agent"), "by_model": True}
            responses.setdefault(question, []).append(known)
        elif not kind and column not in _META:
            fields[column] = value
    return fields, responses


def _listed(value: Any, where: str) -> list[Any]:
    """The values of a cell, which tables write in Python's notation."""
    if isinstance(value, str) and value.startswith("["):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            value = ast.literal_eval(value)
    return list_of(value, where)


def _chosen(responses: Responses, judgements: Judgements, number: int) -> Iterator[dict[str, Any]]:
    """The judgements of the question to read."""
    counting: Responses = {}
    for question, values in responses.items():
        for value in values:
            if value.get("status") not in (None, "submitted"):
                judgements.leave_out(f"a response that is {chat.excerpt(value.get('status'))}, not submitted", number)
            elif judgements.counts(by_model=value["by_model"]) and value["value"] is not None:
                counting.setdefault(question, []).append(value)
    name = judgements.choose(counting, number)
    if name is None:
        judgements.leave_out(
            "a record without a response" + (f' to "{judgements.name}"' if judgements.name else ""), number
        )
    else:
        yield from counting[name]


# Label Studio

_OF_TASK = (
    *("id", "inner_id", "annotator", "annotators", "annotation_id", "created_at", "updated_at", "completed_at"),
    *("lead_time", "agreement", "was_cancelled", "ground_truth", "draft_exists", "comment_authors", "comment_count"),
    *("last_comment_updated_at", "unresolved_comment_count"),
)
"""Columns of JSON_MIN that are no field and no judgement."""


def label_studio(parts: Parts) -> Iterator[SourceRow]:
    """A row per result of an annotation (of a prediction, where models' judgements count)."""
    judgements = parts.judgements
    for file, number, row in parts.rows.get("labelstudio", ()):
        if not isinstance(row, dict):
            yield file, number, row
            continue
        try:
            results = list(_results(row, judgements, number))
        except DataError as error:
            yield file, number, bad_row(row, error.message)
            continue
        for result in results:
            yield file, number, {"id": row.get("id"), "data": row.get("data"), "place": "data.", "judgement": result}
    for file, number, row in parts.rows.get("labelstudio-min", ()):
        if not isinstance(row, dict):
            yield file, number, row
            continue
        data = {name: value for name, value in row.items() if name not in _OF_TASK}
        try:
            name = judgements.choose([name for name, value in data.items() if _could_be_result(name, value)], number)
        except DataError as error:
            yield file, number, bad_row(row, error.message)
            continue
        if name is None:
            judgements.leave_out("a task without a result", number)
            continue
        result = {"value": data.pop(name), "by": row.get("annotator"), "at": row.get("created_at")}
        result["id"] = row.get("annotation_id") or row.get("id")
        yield file, number, {"id": row.get("id"), "data": data, "place": "", "judgement": result}


def _could_be_result(name: str, value: Any) -> bool:
    """Whether a column of JSON_MIN holds a result and no field of the task."""
    if isinstance(value, bool | int | float):
        return True
    with suppress(DataError):
        return isinstance(value, str) and (plain(value) in _SIDES or bool(chat.thumb(value)))
    return bool(called("label", [name])) and isinstance(value, str)


def _results(row: Mapping[str, Any], judgements: Judgements, number: int) -> Iterator[dict[str, Any]]:
    """The results to read of a task."""
    annotations = [(one, False) for one in list_of(row.get("annotations"), "annotations")]
    predictions = [(one, True) for one in list_of(row.get("predictions"), "predictions") if isinstance(one, dict)]
    if not annotations:
        judgements.leave_out("a task without an annotation", number)
    for annotation, by_model in (*annotations, *predictions):
        if not isinstance(annotation, dict):
            raise DataError(f"annotations must be a list of objects, not {chat.excerpt(annotation)}")
        if not judgements.counts(by_model=by_model):
            if not by_model or judgements.by != "person":
                judgements.leave_out("judged by a person", number)
            continue
        if annotation.get("was_cancelled") is True:
            judgements.leave_out("the annotation was cancelled", number)
            continue
        by_name: dict[str, dict[str, Any]] = {}
        notes: list[Any] = []
        for result in list_of(annotation.get("result"), "result"):
            if not isinstance(result, dict):
                raise DataError(f"result must be a list of objects, not {chat.excerpt(result)}")
            value = object_of(result.get("value"), "value")
            kind = str(result.get("type"))
            if kind == "textarea":
                notes += (
                    list_of(value.get("text"), "text") if isinstance(value.get("text"), list) else [value.get("text")]
                )
            elif kind in _VALUES:
                by_name[str(result.get("from_name"))] = result | {"value": value.get(_VALUES[kind])}
            else:
                judgements.leave_out(f"a result of type {chat.excerpt(kind)}, which is no judgement", number)
        if (name := judgements.choose(by_name, number)) is None:
            judgements.leave_out("an annotation without a judgement", number)
            continue
        yield _judgement(row, annotation, by_name[name], [note for note in notes if isinstance(note, str)])


_VALUES = {"pairwise": "selected", "choices": "choices", "rating": "rating", "number": "number"}
"""Types of results that judge, and where their value lies."""


def _judgement(
    row: Mapping[str, Any], annotation: Mapping[str, Any], result: Mapping[str, Any], notes: list[str]
) -> dict[str, Any]:
    value = result["value"]
    if result.get("type") == "choices":
        if not isinstance(value, list) or len(value) != 1:
            raise DataError(f"{result.get('from_name')} must be one choice, not {chat.excerpt(value)}")
        value = value[0]
    by = annotation.get("completed_by") or annotation.get("model_version")
    objects = [name.strip() for name in str(result.get("to_name") or "").split(",")]
    data = object_of(row.get("data"), "data")
    judgement = {"value": value, "by": by.get("email") or by.get("id") if isinstance(by, dict) else by}
    judgement |= {"at": annotation.get("created_at"), "id": annotation.get("id"), "note": ": ".join(notes)}
    if all(name in data for name in objects):  # else the names of the screen's parts, which are in no export
        judgement |= {"sides": objects} if len(objects) == 2 else {"of": objects}
    return judgement


_NESTED = ("fields", "responses", "suggestions", "metadata", "vectors")

LAYOUTS = (
    Layout(
        "argilla",
        ("fields", "responses", "status"),
        judged,
        ("_server_id",),
        ("responses", "suggestions"),
        objects=_NESTED,
        thumbs=thumbs,
        join=argilla,
    ),
    Layout(
        "argilla-flat",
        ("status", "_server_id"),
        judged,
        ("*",),
        thumbs=thumbs,
        looks=lambda row: any(name.endswith(".responses") for name in row),
        join=argilla,
    ),
    Layout(
        "labelstudio",
        ("data", "annotations"),
        judged,
        ("predictions", "project", "created_at", "updated_at"),
        ("annotations",),
        objects=("data", "annotations", "predictions", "drafts", "meta"),
        thumbs=thumbs,
        looks=lambda row: isinstance(row.get("data"), dict) and isinstance(row.get("annotations"), list),
        join=label_studio,
    ),
    Layout(
        "labelstudio-min",
        ("annotator", "annotation_id|lead_time"),
        judged,
        ("*",),
        thumbs=thumbs,
        join=label_studio,
    ),
)
